"""The optimizer and the learning-rate schedule of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from kyon_pl.errors import SettingError

ScheduleCallable = Callable[[Optimizer, int], LRScheduler]
"""Makes a schedule from the optimizer and the number of optimizer steps of the whole run. torch's own schedules
whose second argument is that number (CosineAnnealingLR, for one) fit as they are."""


class LinearDecay(LambdaLR):
    """Rises linearly over the warm-up steps, then falls linearly and reaches 0 after the last step.

    Without warm-up this is the original's schedule: step s of S runs at (S - s) / S of the full rate.

    Args:
        optimizer: whose learning rate it is.
        total_steps: optimizer steps of the whole run; step `total_steps` would run at rate 0.
        warmup_steps: optimizer steps before the full rate is reached; step s of them runs at (s + 1) / (warmup_steps
            + 1) of it, so that no step is spent at rate 0.

    Raises:
        SettingError: a negative number of warm-up steps.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 0) -> None:
        if warmup_steps < 0:
            raise SettingError("model.schedule.warmup_steps", f"{warmup_steps} is negative", "Give 0 or more steps")

        def share(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / (warmup_steps + 1)
            return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

        super().__init__(optimizer, share)


SETTING = "model.optimizer.init_args"


def build_optimizer(make: OptimizerCallable, parameters: list[torch.nn.Parameter]) -> Optimizer:
    """Make it, and refuse numbers that it cannot work with, those that are not finite included, which torch takes.

    Args:
        make: from parameters to an optimizer.
        parameters: what is trained.

    Raises:
        SettingError: such a number.
    """
    try:
        optimizer = make(parameters)
    except ValueError as error:  # torch's optimizers refuse what is below zero
        raise SettingError(SETTING, str(error), "Correct this number.") from error
    for key, value in optimizer.defaults.items():
        numbers = value if isinstance(value, tuple | list) else (value,)
        if not all(math.isfinite(number) for number in numbers if isinstance(number, int | float)):
            raise SettingError(f"{SETTING}.{key}", f"{value} is not finite", "Set a finite number.")
    return optimizer
