"""Randomness by place: what dropout draws depends on which micro-batch it is drawn for, and on nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Randomness(Callback):
    """Seeds torch anew for every micro-batch, so that a resumed run needs no saved random state, and no device matters.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generators of CPU and devices from seed, epoch and the micro-batch's number in the plan over all
        ranks; no device is waited for.
        """
        planned = batch_idx * trainer.world_size + trainer.global_rank
        torch.manual_seed(seed_of(self.seed, trainer.current_epoch, planned))


def seed_of(*place: int) -> int:
    """A seed of 64 bits out of whole numbers from 0 up, each of which changes all of it."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
