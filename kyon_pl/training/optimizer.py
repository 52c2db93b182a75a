"""The optimizer of a run, its learning-rate schedule, and the number of optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from kyon_pl.batch import Workload
from kyon_pl.errors import SettingError

ScheduleCallable = Callable[[Optimizer, int], LRScheduler]
"""Makes a schedule from the optimizer and the number of optimizer steps of the run. Schedules of torch whose second
argument is that number, such as CosineAnnealingLR, can be used directly."""

_SETTING = "model.optimizer.init_args"
_WIDTH_EXPONENT = 0.78  # measured for the best rate of LoRA over models: https://thinkingmachines.ai/blog/lora/


class LinearDecay(LambdaLR):
    """Increases the learning rate linearly during the warm-up, then decreases it linearly to 0.

    Without warm-up this is the schedule of the original: step s of S runs at (S - s) / S of the full rate.

    Args:
        optimizer: optimizer whose learning rate is scheduled.
        total_steps: optimizer steps of the whole run; the rate is 0 after the last one.
        warmup_steps: optimizer steps before the full rate is reached. Step s of these runs at (s + 1) / (warmup_steps
            + 1) of the full rate, so that no step has rate 0. unset: `warmup_share` of the run.
        warmup_share: share of `total_steps` to warm up, rounded up, 0 or more and below 1. The last step at the latest
            has the full rate, so that a short run is trained with it, too. No effect if `warmup_steps` is set.

    Raises:
        SettingError: `warmup_steps` is negative, or `warmup_share` is no share.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup_steps: int | None = None, warmup_share: float = 0.03
    ) -> None:
        if warmup_steps is not None and warmup_steps < 0:
            raise SettingError("model.schedule.warmup_steps", f"{warmup_steps} is negative", "Set 0 or more.")
        if not 0 <= warmup_share < 1:
            fix = "Set a share of the run, 0 or more and below 1, such as 0.03; or warmup_steps."
            raise SettingError("model.schedule.warmup_share", f"{warmup_share} is no share", fix)
        share_steps = min(math.ceil(round(warmup_share * total_steps, 6)), max(0, total_steps - 1))
        warmup = share_steps if warmup_steps is None else warmup_steps

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return max(0.0, (total_steps - step) / max(1, total_steps - warmup))

        super().__init__(optimizer, factor)


def build_optimizer(make: OptimizerCallable, parameters: list[torch.nn.Parameter]) -> Optimizer:
    """Make the optimizer and check its settings; torch itself accepts numbers that are not finite.

    Args:
        make: makes an optimizer from parameters.
        parameters: the trained parameters.

    Raises:
        SettingError: a setting is out of range or not finite.
    """
    try:
        optimizer = make(parameters)
    except ValueError as error:  # torch refuses negative numbers
        raise SettingError(_SETTING, str(error), "Correct this number.") from error
    for key, value in optimizer.defaults.items():
        numbers = value if isinstance(value, tuple | list) else (value,)
        if not all(math.isfinite(number) for number in numbers if isinstance(number, int | float)):
            raise SettingError(f"{_SETTING}.{key}", f"{value} is not finite", "Set a finite number.")
    return optimizer


def scale_rates(optimizer: Optimizer, hidden_size: int, chosen_for: int | None) -> Optimizer:
    """Scale the learning rates of an optimizer to the width of the base: narrow models learn at higher rates.

    Args:
        optimizer: its rates are changed in place.
        hidden_size: of the base.
        chosen_for: hidden size for which the rates were chosen; None: they are not scaled.

    Returns:
        The optimizer.
    """
    if chosen_for is not None:
        for group in optimizer.param_groups:
            group["lr"] *= (chosen_for / hidden_size) ** _WIDTH_EXPONENT
    return optimizer


class Rates(NamedTuple):
    """The learning rates of a run.

    Attributes:
        chosen: the rate in the optimizer's settings, scaled to the base.
        highest: the highest one that the schedule reaches during the run.
        schedule: the schedule itself, of an optimizer that trains nothing.
    """

    chosen: float
    highest: float
    schedule: LRScheduler


def learning_rates(make: OptimizerCallable, make_schedule: ScheduleCallable, steps: int) -> Rates:
    """Run the schedule with an optimizer that trains nothing, until it reaches the rate that is set.

    Args:
        make: makes an optimizer from parameters.
        make_schedule: makes the schedule from the optimizer and the number of optimizer steps.
        steps: optimizer steps of the run.

    Raises:
        SettingError: a setting is out of range or not finite.
    """
    optimizer = build_optimizer(make, [torch.nn.Parameter(torch.zeros(1))])
    chosen = max(float(group["lr"]) for group in optimizer.param_groups)
    schedule, highest = make_schedule(optimizer, steps), 0.0
    for _ in range(steps):
        highest = max(highest, *(float(group["lr"]) for group in optimizer.param_groups))
        if highest >= chosen:
            break
        optimizer.step(lambda: 0.0)  # a closure, which some optimizers require
        schedule.step()
    return Rates(chosen, highest, schedule)


def gradient_norm(optimizer: Optimizer) -> torch.Tensor:
    """The L2 norm over all gradients, a scalar; not finite if one of them is not."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def check_clipping(optimizer: Optimizer, trainer: Trainer) -> None:
    """Check that gradients can be clipped; Lightning cannot clip with a fused optimizer under 16-mixed.

    Raises:
        SettingError: they cannot.
    """
    if trainer.precision == "16-mixed" and trainer.gradient_clip_val and optimizer.defaults.get("fused"):
        raise SettingError(
            where=f"{_SETTING}.fused",
            found="a fused optimizer unscales 16-mixed gradients itself, so they cannot be clipped before",
            fix="Remove `fused`, or set trainer.precision to bf16-mixed, or trainer.gradient_clip_val to null",
        )


def total_steps(trainer: Trainer) -> int:
    """The number of optimizer steps of the whole run.

    It is computed from the data module's plan. Lightning's own estimate would start the loader's workers before the
    position of a resumed run is known; it is used only for other data modules.

    Raises:
        SettingError: neither `max_epochs` nor `max_steps` ends the run.
    """
    workload = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(workload, Workload):
        return int(trainer.estimated_stepping_batches)
    epochs = trainer.max_epochs or -1
    by_epochs = workload.steps_per_epoch * epochs if epochs > 0 else math.inf
    by_steps = trainer.max_steps if trainer.max_steps > 0 else math.inf
    if math.isinf(by_epochs) and math.isinf(by_steps):
        fix = "Set one of them: the learning-rate schedule needs the length of the run."
        raise SettingError("trainer.max_epochs", "the run has no end: trainer.max_steps is not set either", fix)
    return int(min(by_epochs, by_steps))
