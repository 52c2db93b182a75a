"""Checkpoints by optimizer step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


class StepCheckpoint(Checkpoint):
    """Saves every N optimizer steps and at the end of training, always at a whole optimizer step, and keeps the newest.

    Lightning's ModelCheckpoint with `every_n_train_steps` may save inside an accumulation window after a resume, and
    does not save at the end; for the best checkpoints by a metric, it is the one to use.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
        keep: how many to keep, the newest ones.
    """

    def __init__(self, every_n_steps: int = 500, keep: int = 1) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.saved: list[str] = []
        self.last_saved_step = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where a step is due. The epoch's last batch is left to `on_train_epoch_end`, after its validation."""
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if (
            whole_step
            and not trainer.is_last_batch
            and trainer.global_step >= self.last_saved_step + self.every_n_steps
        ):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where a step was due at the epoch's last batch."""
        if trainer.global_step >= self.last_saved_step + self.every_n_steps:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the result."""
        if trainer.global_step > self.last_saved_step:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        folder = Path(str(trainer.log_dir or trainer.default_root_dir)) / "checkpoints"
        path = str(folder / f"step={trainer.global_step}.ckpt")
        self.last_saved_step = trainer.global_step
        trainer.save_checkpoint(path)
        self.saved.append(path)
        for old in self.saved[: -self.keep]:
            trainer.strategy.remove_checkpoint(old)
        self.saved = self.saved[-self.keep :]

    def state_dict(self) -> dict[str, Any]:
        """The step of the newest checkpoint, so that a resumed run goes on in the same rhythm."""
        return {"last_saved_step": self.last_saved_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.last_saved_step = state_dict["last_saved_step"]
