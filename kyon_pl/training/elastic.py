"""A run that goes on with another number of devices: its optimizer steps are made of the same micro-batches, and each
device takes more or fewer of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from kyon_pl.batch import Workload
from kyon_pl.errors import SettingError
from kyon_pl.runs.fingerprint import ACCUMULATE, MICRO_BATCHES

log = logging.getLogger(__name__)

# settings that count micro-batches of one device
_COUNTED = ("val_check_interval", "limit_train_batches", "limit_val_batches")


def share_steps(trainer: Trainer, fingerprint: Mapping[str, str]) -> None:
    """Set accumulation, and what is counted in micro-batches of a device, so that optimizer steps stay what they are.

    Args:
        trainer: of this run, with the numbers of its own settings.
        fingerprint: of the run that it goes on with, whose accumulation these numbers were made for.

    Raises:
        SettingError: the micro-batches of a step cannot be shared evenly by these devices.
    """
    micro_batches, made_for = int(fingerprint[MICRO_BATCHES]), int(fingerprint[ACCUMULATE])
    devices, asked = trainer.world_size, trainer.accumulate_grad_batches
    if micro_batches % devices:
        fitting = ", ".join(str(count) for count in range(1, micro_batches + 1) if micro_batches % count == 0)
        raise SettingError(
            where="trainer.devices",
            found=f"the run to go on with has {micro_batches} micro-batches an optimizer step, which {devices} devices "
            "cannot share evenly",
            fix=f"Use one of these numbers of devices: {fitting}; or start a new run: --auto_resume false, without "
            "--ckpt_path",
        )
    trainer.accumulate_grad_batches = micro_batches // devices
    if trainer.accumulate_grad_batches != asked:
        log.info(
            "accumulation: %d instead of %d, so that on %d devices an optimizer step keeps its %d micro-batches",
            trainer.accumulate_grad_batches,
            asked,
            devices,
            micro_batches,
        )
    for name in _COUNTED:
        setattr(trainer, name, _rescaled(name, getattr(trainer, name), made_for, trainer.accumulate_grad_batches))


def _rescaled(name: str, value: int | float | None, before: int, now: int) -> int | float | None:
    if type(value) is not int:
        return value
    if value * now % before:
        found = f"{value} micro-batches of a device are no whole number with accumulation {now} instead of {before}"
        raise SettingError(f"trainer.{name}", found, f"Use as many devices as before, or a multiple of {before} here.")
    return value * now // before


def place_loops(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Have the loops in a checkpoint count in micro-batches of this run's devices.

    Args:
        trainer: of this run; its data know how long an epoch is.
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
