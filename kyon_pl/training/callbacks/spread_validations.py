"""A callback that spreads validations over the run."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from kyon_pl.batch import Workload
from kyon_pl.errors import SettingError
from kyon_pl.training.optimizer import total_steps


class SpreadValidations(Callback):
    """Spreads validations evenly over the run, so that short and long runs have curves with equally many points.

    It sets `trainer.val_check_interval` and `trainer.check_val_every_n_epoch` from the number of optimizer steps. The
    last step is validated, too, where one of twice as many validations divides the run evenly. A run with fewer steps
    than `validations` validates after each one.

    Args:
        validations: number of validations of a run, without the one before the first step.

    Raises:
        SettingError: `validations` is lower than 1.
    """

    def __init__(self, validations: int = 10) -> None:
        if validations < 1:
            fix = "Set 1 or more; for no validation, trainer.limit_val_batches: 0."
            raise SettingError("SpreadValidations.validations", f"{validations} is too low", fix)
        self.validations = validations

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the interval, once the data is planned and before the loops read it."""
        workload = trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit" or not isinstance(workload, Workload):
            return
        accumulated, per_epoch = trainer.accumulate_grad_batches, workload.steps_per_epoch
        every = validation_interval(total_steps(trainer), self.validations)
        # a validation is at the end of an optimizer step. Lightning ends one at the last batch of an epoch, so that
        # only epochs of whole steps can be counted through
        trainer.check_val_every_n_epoch = 1
        if workload.batches_per_epoch % accumulated == 0:
            trainer.check_val_every_n_epoch = None
            trainer.val_check_interval = every * accumulated
        elif every < per_epoch:
            trainer.val_check_interval = every * accumulated
        else:
            trainer.check_val_every_n_epoch, trainer.val_check_interval = every // per_epoch, 1.0


def validation_interval(steps: int, validations: int) -> int:
    """The number of optimizer steps between two validations.

    Args:
        steps: optimizer steps of the run.
        validations: the number of validations to have; up to twice as many are made if they divide the run evenly.
    """
    count = next((count for count in range(validations, 2 * validations) if steps % count == 0), validations)
    return max(1, steps // count)
