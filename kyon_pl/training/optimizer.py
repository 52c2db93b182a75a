"""The optimizer of a run, out of what a person chose."""

from __future__ import annotations

import math

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.optim import Optimizer

from kyon_pl.errors import SettingError

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
