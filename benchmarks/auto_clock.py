"""A callback that measures a few optimizer steps and ends the process; a configuration can only name the class."""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class StopAfter(Callback):
    """Writes the speed and the losses of the first optimizer steps, and exits.

    Attributes:
        steps: number of optimizer steps; the first does not count for the speed.
        result: JSON file to write.
    """

    steps = 0
    result = Path()

    def __init__(self) -> None:
        self.loss: torch.Tensor | float = 0.0
        self.tokens = 0
        self.losses: list[float] = []
        self.speeds: list[float] = []
        self.began_s = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a micro-batch; at the end of a step, wait for the device and take the time."""
        self.loss = self.loss + outputs["loss"].detach()
        self.tokens += batch.tokens
        if trainer.global_step == len(self.losses):
            return
        loss = float(self.loss)  # waits for the device
        now_s = time.perf_counter()
        if self.losses:
            self.speeds.append(self.tokens / (now_s - self.began_s))
        self.losses.append(loss)
        self.loss, self.tokens, self.began_s = 0.0, 0, now_s
        if len(self.losses) == self.steps:
            self._write()

    def _write(self) -> None:
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        allocated, reserved = (peak / 2**30 for peak in peaks)
        found = {"tokens_per_s": statistics.median(self.speeds), "losses": self.losses}
        self.result.write_text(json.dumps(found | {"allocated_gib": allocated, "reserved_gib": reserved}))
        os._exit(0)
