"""What a run folder and its checkpoints say of the run, and what is asked of them when it goes on."""

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
from kyon_pl.training.elastic import place_loops

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class RunRecord(Callback):
    """Keeps `run.json`, puts fingerprint and contents into checkpoints, and checks both when one is loaded.

    It also makes checkpoints independent of where the run folder lies, has the curves on the disk before a checkpoint
    is, and cuts off what an interrupted run has drawn behind its last one.

    Args:
        fingerprint: tells what the result of this run depends on; called once base and data are there.
        allow_changes: load a checkpoint whose fingerprint is another.
    """

    def __init__(self, fingerprint: Callable[[], dict[str, str]], allow_changes: bool = False) -> None:
        self.make_fingerprint = fingerprint
        self.allow_changes = allow_changes
        self.fingerprint: dict[str, str] = {}
        self.current_scores: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the record of a run that begins."""
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.fingerprint = self.make_fingerprint()
        self.folder = Path(str(trainer.log_dir or trainer.default_root_dir))
        if trainer.is_global_zero and not (self.folder / RECORD).exists():
            write_record(self.folder, self.fingerprint, finished_at_step=None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record of a run that goes on, now that its checkpoint is not refused.

        One without a checkpoint goes on from its beginning: all of its curves are taken back, before they begin anew.
        """
        if trainer.is_global_zero and self.fingerprint:
            write_record(self.folder, self.fingerprint, finished_at_step=None)
        if trainer.ckpt_path is None:
            cut_curves(trainer, from_step=0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the curves off behind this step.

        Raises:
            SettingError: a validation inside an accumulation window, where no checkpoint can be gone on from.
        """
        check_validation_interval(trainer)
        # Lightning spares the checkpoint that it resumes from when it removes old ones; it is one like any other
        trainer.ckpt_path = None
        for callback in model_checkpoints(trainer):
            callback.current_score = self.current_scores.get(callback.state_key, callback.current_score)
        if trainer.global_step:
            cut_curves(trainer, from_step=trainer.global_step + 1)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what is asked of a checkpoint when it is loaded."""
        for logger in trainer.loggers:
            logger.save()
        step_back_before_epoch_end(trainer, checkpoint["loops"]["fit_loop"])
        for callback in model_checkpoints(trainer):
            make_relative(checkpoint["callbacks"][callback.state_key])
        checkpoint[FINGERPRINT] = self.fingerprint
        # of a validation that stops the run early: whoever goes on from there would train on, as Lightning has no
        # memory of it, and so a killed run goes on from an earlier one and comes to the same end
        checkpoint[STOPPING] = trainer.validating and trainer.should_stop

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of something else.

        Raises:
            CheckpointError: it names the state that is missing, unexpected or altered, or the settings that differ.
        """
        if trainer.state.fn == "fit" and not self.allow_changes:
            check_fingerprint(checkpoint, self.fingerprint)
        if trainer.state.fn == "fit":
            place_loops(trainer, checkpoint)
        for callback in model_checkpoints(trainer):
            state = checkpoint["callbacks"].get(callback.state_key)
            if state is None:
                continue
            make_absolute(state, str(callback.dirpath))
            if all(Path(file).is_file() for file in state["best_k_models"]):
                self.current_scores[callback.state_key] = state["current_score"]
                if trainer.state.fn == "fit" and trainer.is_global_zero:
                    for file in outdated(callback, state):
                        trainer.strategy.remove_checkpoint(file)
            else:  # the run goes on in another folder, or from an older checkpoint
                del checkpoint["callbacks"][callback.state_key]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Record the end of the run; Lightning calls this at a good end only, when all is saved."""
        if self.fingerprint and trainer.is_global_zero:
            write_record(self.folder, self.fingerprint, trainer.global_step)


def model_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    """Lightning's own of this run."""
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def make_relative(state: dict[str, Any]) -> None:
    """Take the folder out of all paths in the state of a ModelCheckpoint."""
    folder = str(state["dirpath"])

    def relative(path: str) -> str:
        return str(Path(path).relative_to(folder)) if path and Path(path).is_relative_to(folder) else path

    state.update({key: relative(state[key]) for key in _PATHS})
    state["best_k_models"] = {relative(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = ""


def make_absolute(state: dict[str, Any], folder: str) -> None:
    """The reverse of `make_relative`, in the folder where the checkpoints are now."""

    def absolute(path: str) -> str:
        return os.path.join(folder, path) if path else path  # noqa: PTH118 (Lightning compares these as texts)

    state.update({key: absolute(state[key]) for key in _PATHS})
    state["best_k_models"] = {absolute(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = folder


def outdated(callback: ModelCheckpoint, state: dict[str, Any]) -> list[Path]:
    """What a ModelCheckpoint had saved and would have removed next when the run was killed.

    Args:
        callback: that saved it. A file that does not name itself among this callback's own was put there by a person.
        state: of the callback, in the checkpoint that the run goes on from; with absolute paths.
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
    """Make a checkpoint of an epoch's end one from right after that epoch's last validation.

    Lightning saves in the hooks of an epoch's end, and a run that goes on from there does not call them again, even
    those that had not been called yet. From the validation's end on it calls all of them. Without a validation there
    Lightning would draw a batch first, and the checkpoint stays as it is.

    Args:
        trainer: in the middle of it.
        fit_loop: the loop's state in the checkpoint.
    """
    epochs = fit_loop["epoch_progress"]
    if epochs["current"]["processed"] > epochs["current"]["completed"] and validates_after(
        trainer, trainer.fit_loop.batch_idx
    ):
        epochs["current"]["processed"] -= 1
        epochs["total"]["processed"] -= 1
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def cut_curves(trainer: Trainer, from_step: int) -> None:
    """Tell TensorBoard that what was drawn from this step on counts no more."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            start = Event(step=from_step, session_log=SessionLog(status=SessionLog.START))
            logger.experiment.file_writer.add_event(start)


def check_validation_interval(trainer: Trainer) -> None:
    """Refuse a validation inside an accumulation window.

    Raises:
        SettingError: there would be one.
    """
    every_n_batches, accumulated = trainer.val_check_batch, trainer.accumulate_grad_batches
    if not trainer.enable_validation or every_n_batches in (None, float("inf"), trainer.num_training_batches):
        return
    if int(every_n_batches) % accumulated:
        raise SettingError(
            where="trainer.val_check_interval",
            found=f"a validation after every {every_n_batches} micro-batches would fall into the middle of a step of "
            f"{accumulated}",
            fix=f"Give it as a whole number that is a multiple of {accumulated}",
        )
