"""Resuming a run on another number of devices, with the same micro-batches per optimizer step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from kyon_pl.batch import Workload
from kyon_pl.errors import SettingError
from kyon_pl.runs.fingerprint import ACCUMULATE, MICRO_BATCHES

log = logging.getLogger(__name__)

# settings that are given in micro-batches per device
_IN_MICRO_BATCHES = ("val_check_interval", "limit_train_batches", "limit_val_batches")


def keep_optimizer_steps(trainer: Trainer, fingerprint: Mapping[str, str]) -> None:
    """Set the accumulation so that an optimizer step keeps its micro-batches, and rescale settings that count these.

    Args:
        trainer: the trainer of this run; changed in place.
        fingerprint: the fingerprint of the run that is resumed.

    Raises:
        SettingError: the devices cannot share the micro-batches of a step evenly.
    """
    micro_batches, saved_accumulation = int(fingerprint[MICRO_BATCHES]), int(fingerprint[ACCUMULATE])
    devices, accumulation = trainer.world_size, trainer.accumulate_grad_batches
    if micro_batches % devices:
        divisors = ", ".join(str(count) for count in range(1, micro_batches + 1) if micro_batches % count == 0)
        raise SettingError(
            where="trainer.devices",
            found=f"the resumed run has {micro_batches} micro-batches per optimizer step, which {devices} devices "
            "cannot share evenly",
            fix=f"Use one of these numbers of devices: {divisors}; or start a new run: --auto_resume false, without "
            "--ckpt_path",
        )
    trainer.accumulate_grad_batches = micro_batches // devices
    if trainer.accumulate_grad_batches != accumulation:
        log.info(
            "accumulation: %d instead of %d, so that on %d devices an optimizer step keeps its %d micro-batches",
            trainer.accumulate_grad_batches,
            accumulation,
            devices,
            micro_batches,
        )
    rescale_intervals(trainer, saved_accumulation)


def rescale_intervals(trainer: Trainer, saved_accumulation: int) -> None:
    """Convert the settings that are given in micro-batches per device to this run's accumulation.

    Args:
        trainer: the trainer of this run; changed in place.
        saved_accumulation: accumulation of the run that is resumed.

    Raises:
        SettingError: one of them is no whole number of micro-batches.
    """
    for name in _IN_MICRO_BATCHES:
        value = _rescale(name, getattr(trainer, name), saved_accumulation, trainer.accumulate_grad_batches)
        setattr(trainer, name, value)


def _rescale(name: str, value: int | float | None, before: int, now: int) -> int | float | None:
    if type(value) is not int:
        return value
    if value * now % before:
        found = f"{value} micro-batches per device do not divide by {before} when accumulation changes to {now}"
        raise SettingError(f"trainer.{name}", found, f"Use as many devices as before, or a multiple of {before} here.")
    return value * now // before


def rescale_loop_progress(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Convert the micro-batch counts of the loops in a checkpoint to this run's number of devices.

    Args:
        trainer: the trainer of this run, with its data module.
        checkpoint: changed in place.
    """
    workload, step = trainer.datamodule, checkpoint["global_step"]  # type: ignore[attr-defined]
    if not isinstance(workload, Workload) or not step:
        return
    epochs, last_step = divmod(step - 1, workload.steps_per_epoch)
    in_epoch = min((last_step + 1) * trainer.accumulate_grad_batches, workload.batches_per_epoch)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for part, ready in (("current", in_epoch), ("total", epochs * workload.batches_per_epoch + in_epoch)):
        moved = ready - progress[part]["ready"]
        progress[part].update({key: count + moved for key, count in progress[part].items()})
