"""A callback that saves checkpoints by optimizer step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from kyon_pl.runs.checkpoint_io import remove_unfinished
from kyon_pl.runs.integrity import CHECKPOINTS


class StepCheckpoint(Checkpoint):
    """Saves every N optimizer steps and at the end of training, between optimizer steps, and keeps the newest.

    Lightning's ModelCheckpoint with `every_n_train_steps` may save inside an accumulation window after a resume, and
    does not save at the end. Use it for the best checkpoints by a metric.

    A run can be resumed exactly only where all hooks of a step have run. So a checkpoint that is due together with a
    validation is saved after the validation, and one that is due at an epoch's last batch is saved at the epoch's end.
    With `max_steps` and without a validation there, it is saved after the next step, because Lightning would repeat
    the epoch's end.

    The callback has no state: it reads from the disk what was saved.

    Args:
        every_n_steps: optimizer steps between two checkpoints; they are saved at its multiples.
        keep: number of newest checkpoints to keep.

    Attributes:
        save_next: set it to request a checkpoint at the next possible moment.
        last_saved_step: optimizer step of the newest checkpoint.
    """

    def __init__(self, every_n_steps: int = 500, keep: int = 1) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.save_next = False
        self.last_saved_step = 0
        self.folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the folder; `log_dir` is broadcast over ranks."""
        self.folder = Path(str(trainer.log_dir or trainer.default_root_dir)) / CHECKPOINTS

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the checkpoints of an interrupted run."""
        self._find_saved(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after a step that no validation and no epoch end follows."""
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        ends = trainer.is_last_batch or trainer.should_stop
        if whole_step and not ends and not validates_after(trainer, batch_idx):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation in the middle of an epoch."""
        if trainer.state.fn == "fit" and not (trainer.sanity_checking or trainer.is_last_batch or trainer.should_stop):
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of an epoch, except the last one, after which `on_train_end` saves."""
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if not ends and (trainer.max_steps == -1 or validates_after(trainer, trainer.fit_loop.batch_idx)):
            self._save_if_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final checkpoint."""
        self._save_last(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final checkpoint of a run that was killed after its last step; only this hook is called then."""
        self._find_saved(trainer)
        self._save_last(trainer)

    def newest(self, trainer: Trainer) -> Path | None:
        """The file of the newest checkpoint; None if there is none."""
        saved = self._saved(trainer)
        return saved[-1][1] if saved else None

    def _save_if_due(self, trainer: Trainer) -> None:
        step, last = trainer.global_step, self.last_saved_step
        if step > last and (self.save_next or step // self.every_n_steps > last // self.every_n_steps):
            self._save(trainer)
        self.save_next = False

    def _save_last(self, trainer: Trainer) -> None:
        if trainer.global_step > self.last_saved_step:
            self._save(trainer)
        self._remove_old(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")
        self.last_saved_step = trainer.global_step
        self._remove_old(trainer)

    def _find_saved(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            remove_unfinished(self.folder)
        saved = self._saved(trainer)
        self.last_saved_step = trainer.strategy.broadcast(saved[-1][0] if saved else 0)

    def _remove_old(self, trainer: Trainer) -> None:
        for _, file in self._saved(trainer)[: -self.keep]:
            trainer.strategy.remove_checkpoint(file)

    def _saved(self, trainer: Trainer) -> list[tuple[int, Path]]:
        """Step and file of the checkpoints up to this step, the oldest first."""
        files = self.folder.glob("step=*.ckpt")
        numbered = [(int(match[1]), file) for file in files if (match := re.fullmatch(r"step=(\d+)", file.stem))]
        return sorted(pair for pair in numbered if pair[0] <= trainer.global_step)


def validates_after(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates directly after this micro-batch of the epoch."""
    if not trainer.enable_validation:
        return False
    every_n_epochs = trainer.check_val_every_n_epoch
    if every_n_epochs is None:
        batch_idx = trainer.fit_loop.total_batch_idx
    elif (trainer.current_epoch + 1) % every_n_epochs:
        return False
    every_n_batches: int | float | None = trainer.val_check_batch
    return every_n_batches is not None and (batch_idx + 1) % every_n_batches == 0
