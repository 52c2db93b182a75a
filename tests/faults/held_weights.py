"""Writes how much of the base a rank holds, once a run has ended."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor


class WriteHeld(Callback):
    """Writes `held-RANK.json`: [frozen weights that this rank holds, frozen weights of the base]."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        frozen = [parameter for parameter in pl_module.parameters() if not parameter.requires_grad]
        held = sum((weight.to_local() if isinstance(weight, DTensor) else weight).numel() for weight in frozen)
        whole = sum(weight.numel() for weight in frozen)
        Path(f"held-{trainer.global_rank}.json").write_text(json.dumps([held, whole]))
