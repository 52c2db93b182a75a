"""A callback that records a run in its folder and its checkpoints, and checks the record when the run is resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

from kyon_pl.errors import SettingError
from kyon_pl.runs.checkpoint_io import STOPPING, read_checkpoint
from kyon_pl.runs.fingerprint import FINGERPRINT, check_fingerprint
from kyon_pl.runs.integrity import fault_of_checkpoint
from kyon_pl.runs.resume import RECORD, write_record
from kyon_pl.training.callbacks.step_checkpoint import validates_after
from kyon_pl.training.elastic import rescale_loop_progress

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class RunRecord(Callback):
    """Writes `run.json`, adds the fingerprint to checkpoints, and checks it when a checkpoint is loaded.

    It also stores paths in checkpoints relative to the run folder, flushes the curves before a checkpoint is written,
    and removes the part of the curves that an interrupted run drew after its last checkpoint.

    Args:
        fingerprint: returns everything that the result of this run depends on; called after base and data are on disk.
        allow_changes: accept a checkpoint with another fingerprint.
    """

    def __init__(self, fingerprint: Callable[[], dict[str, str]], allow_changes: bool = False) -> None:
        self.make_fingerprint = fingerprint
        self.allow_changes = allow_changes
        self.fingerprint: dict[str, str] = {}
        self.current_scores: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the record of a new run."""
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.fingerprint = self.make_fingerprint()
        self.folder = Path(str(trainer.log_dir or trainer.default_root_dir))
        if trainer.is_global_zero and not (self.folder / RECORD).exists():
            write_record(self.folder, self.fingerprint, finished_at_step=None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record of a resumed run, after its checkpoint is accepted.

        A run without a checkpoint restarts, so all of its curves are removed.
        """
        if trainer.is_global_zero and self.fingerprint:
            write_record(self.folder, self.fingerprint, finished_at_step=None)
        if trainer.ckpt_path is None:
            cut_curves(trainer, from_step=0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the part of the curves after this step.

        Raises:
            SettingError: a validation falls inside an accumulation window, where checkpoints cannot be resumed.
        """
        check_validation_interval(trainer)
        # otherwise Lightning would keep the checkpoint that it resumes from when it removes old ones
        trainer.ckpt_path = None
        for callback in model_checkpoints(trainer):
            callback.current_score = self.current_scores.get(callback.state_key, callback.current_score)
        if trainer.global_step:
            cut_curves(trainer, from_step=trainer.global_step + 1)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the fingerprint and what resuming needs."""
        for logger in trainer.loggers:
            logger.save()
        step_back_before_epoch_end(trainer, checkpoint["loops"]["fit_loop"])
        for callback in model_checkpoints(trainer):
            make_relative(checkpoint["callbacks"][callback.state_key])
        checkpoint[FINGERPRINT] = self.fingerprint
        # Lightning does not restore an early stop, and would train on. So a checkpoint of the validation that stops
        # the run is not resumable, and a killed run is resumed from an earlier one
        checkpoint[STOPPING] = trainer.validating and trainer.should_stop

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this run, and adapt its paths and loops.

        Raises:
            CheckpointError: it names the settings that differ.
        """
        if trainer.state.fn == "fit" and not self.allow_changes:
            check_fingerprint(checkpoint, self.fingerprint)
        if trainer.state.fn == "fit":
            rescale_loop_progress(trainer, checkpoint)
        for callback in model_checkpoints(trainer):
            state = checkpoint["callbacks"].get(callback.state_key)
            if state is None:
                continue
            make_absolute(state, str(callback.dirpath))
            if all(Path(file).is_file() for file in state["best_k_models"]):
                self.current_scores[callback.state_key] = state["current_score"]
                if trainer.state.fn == "fit" and trainer.is_global_zero:
                    for file in outdated_checkpoints(callback, state):
                        trainer.strategy.remove_checkpoint(file)
            else:  # the run continues in another folder, or from an older checkpoint
                del checkpoint["callbacks"][callback.state_key]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Record the end of the run; Lightning calls this only after success, when everything is saved."""
        if self.fingerprint and trainer.is_global_zero:
            write_record(self.folder, self.fingerprint, trainer.global_step)


def model_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    """The ModelCheckpoint callbacks of this run."""
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def make_relative(state: dict[str, Any]) -> None:
    """Make all paths in the state of a ModelCheckpoint relative to its folder."""
    folder = str(state["dirpath"])

    def relative(path: str) -> str:
        return str(Path(path).relative_to(folder)) if path and Path(path).is_relative_to(folder) else path

    state.update({key: relative(state[key]) for key in _PATHS})
    state["best_k_models"] = {relative(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = ""


def make_absolute(state: dict[str, Any], folder: str) -> None:
    """Make all paths in the state of a ModelCheckpoint absolute, in the folder where the checkpoints are now."""

    def absolute(path: str) -> str:
        return os.path.join(folder, path) if path else path  # noqa: PTH118 (Lightning compares strings)

    state.update({key: absolute(state[key]) for key in _PATHS})
    state["best_k_models"] = {absolute(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = folder


def outdated_checkpoints(callback: ModelCheckpoint, state: dict[str, Any]) -> list[Path]:
    """Files that a ModelCheckpoint had saved but not yet removed when the run was killed.

    A file whose own state does not list it as one of this callback was put there by the user, and is kept.

    Args:
        callback: the callback that saved them.
        state: state of the callback in the checkpoint that is resumed, with absolute paths.
    """
    folder = Path(str(callback.dirpath))
    kept = {*state["best_k_models"], *(state[key] for key in _PATHS)}
    others = [file for file in folder.glob("*.ckpt") if str(file) not in kept and fault_of_checkpoint(file) is None]
    found = []
    for file in others:
        own = read_checkpoint(file).get("callbacks", {}).get(callback.state_key, {})
        if file.name in {*own.get("best_k_models", {}), *(own.get(key) for key in _PATHS)}:
            found.append(file)
    return found


def step_back_before_epoch_end(trainer: Trainer, fit_loop: dict[str, Any]) -> None:
    """Move a checkpoint of an epoch's end back to the end of that epoch's last validation.

    Lightning saves in the hooks of an epoch's end, and a resumed run does not call these hooks again, even those that
    had not run yet. Resumed from the end of the validation, it calls all of them. Without a validation at the epoch's
    end Lightning would draw a batch first, so the checkpoint is left unchanged.

    Args:
        trainer: the running trainer.
        fit_loop: state of the loop in the checkpoint; changed in place.
    """
    epochs = fit_loop["epoch_progress"]
    if epochs["current"]["processed"] > epochs["current"]["completed"] and validates_after(
        trainer, trainer.fit_loop.batch_idx
    ):
        epochs["current"]["processed"] -= 1
        epochs["total"]["processed"] -= 1
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def cut_curves(trainer: Trainer, from_step: int) -> None:
    """Make TensorBoard drop all points from this step on."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            start = Event(step=from_step, session_log=SessionLog(status=SessionLog.START))
            logger.experiment.file_writer.add_event(start)


def check_validation_interval(trainer: Trainer) -> None:
    """Check that no validation falls inside an accumulation window.

    Raises:
        SettingError: one does.
    """
    every_n_batches, accumulated = trainer.val_check_batch, trainer.accumulate_grad_batches
    if not trainer.enable_validation or every_n_batches in (None, float("inf"), trainer.num_training_batches):
        return
    if int(every_n_batches) % accumulated:
        raise SettingError(
            where="trainer.val_check_interval",
            found=f"a validation every {every_n_batches} micro-batches falls inside an optimizer step of {accumulated}",
            fix=f"Set an integer that is a multiple of {accumulated}",
        )
