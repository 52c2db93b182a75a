"""Counts what a rank exchanges with the others in one optimizer step, as torch's profiler sees it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.profiler import ProfilerActivity, profile

# The one that is counted: in the middle of the second epoch, a whole one. In the first steps DDP arranges its buckets.
STEP = 5


class CountExchanged(Checkpoint):
    """Writes `exchanged.json`: [[kind of exchange, elements], ...]; to Lightning a checkpoint callback, called last."""

    counting: profile | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == STEP - 1 and self.counting is None:
            self.counting = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
            self.counting.start()
        elif trainer.global_step == STEP and self.counting is not None:
            self.counting, counted = None, self.counting
            counted.stop()
            found = [
                [event.name.removeprefix("gloo:"), math.prod(event.input_shapes[0]) if event.input_shapes else 0]
                for event in counted.events()
                if event.name.startswith("gloo:")
            ]
            if trainer.is_global_zero:
                Path("exchanged.json").write_text(json.dumps(found))
