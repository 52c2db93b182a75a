"""Warnings about runs that are too short to learn."""

from __future__ import annotations

import logging
import math

from lightning.pytorch import Trainer

from kyon_pl.batch import Workload
from kyon_pl.training.optimizer import LinearDecay, Rates

log = logging.getLogger(__name__)

MIN_STEPS = 50
"""Optimizer steps below which a LoRA adapter hardly learns a manner of speaking, at the rates of configs/."""

_MIN_RATE_SHARE = 0.9


def warn_if_too_short(trainer: Trainer, workload: Workload, steps: int, rates: Rates) -> None:
    """Warn, with the option to add, about few steps, a warm-up as long as the run, and a run without validation.

    Args:
        trainer: of the run.
        workload: its data.
        steps: optimizer steps of the run.
        rates: its learning rates.
    """
    if steps < MIN_STEPS:
        epochs = max(math.ceil(MIN_STEPS / workload.steps_per_epoch), 1 + (trainer.max_epochs or 0))
        option = f"--trainer.max_epochs {epochs}"
        if 0 < trainer.max_steps < MIN_STEPS:
            option = f"--trainer.max_steps {MIN_STEPS}"
        text = (
            "only %d optimizer steps, and fewer than %d teach little: for a character of your own, use "
            "--config character in place of the config; or add %s"
        )
        log.warning(text, steps, MIN_STEPS, option)
    if rates.highest < _MIN_RATE_SHARE * rates.chosen:
        share = f"{rates.highest / rates.chosen:.0%}"
        text = "the learning rate never rises above %.3g, %s of %.3g, because all steps are warm-up: %s"
        fix = "shorten the warm-up of model.schedule"
        if isinstance(rates.schedule, LinearDecay):
            fix = "add --model.schedule.warmup_steps null, which makes the warm-up 3 % of the run"
        log.warning(text, rates.highest, share, rates.chosen, fix)
    if trainer.limit_val_batches and not workload.validation_rows:
        log.warning(
            "nothing is validated, so there will be no best checkpoint: add --data.validation_share 0.1, "
            "or with fewer than five questions --data.validation_source FILE"
        )
