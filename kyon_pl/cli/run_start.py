"""Where a run starts: the folder of a new run, or of the run that is resumed, found and locked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from kyon_pl.cli.auto import CONFIG
from kyon_pl.cli.run_messages import finished
from kyon_pl.data.dialogue_data import SOURCES
from kyon_pl.data.report import bad_rows_output
from kyon_pl.evaluation.held_out import REPLIES
from kyon_pl.outputs import Output, check_outputs, locked, output_file, text_that_starts
from kyon_pl.runs.checkpoint_io import check_writable
from kyon_pl.runs.fingerprint import FINGERPRINT, check_fingerprint, keep_accumulation
from kyon_pl.runs.resume import (
    RECORD,
    Start,
    create_run,
    find_resumable_run,
    folder_of_runs,
    lock_run,
    next_version,
    read_run,
    refuse_running,
    start_from_checkpoint,
)
from kyon_pl.training.callbacks.reply_writer import replies_output


class RunFinished(Exception):  # noqa: N818 (it is no error)
    """The run to resume has finished; the message tells how to train it further."""


class RunStart:
    """Finds or creates the folder of a run, locks it until the command ends, and logs into it.

    Args:
        trainer: whose logger gets the folder.
        settings: of the command, parsed.
        own_settings: what identifies the run without its base and data, for `Start.fingerprint`.
        fingerprint: what identifies it with them; downloads them if they are missing.
        held: gets the lock.
    """

    def __init__(
        self,
        trainer: Trainer,
        settings: Namespace,
        own_settings: Callable[[], dict[str, str]],
        fingerprint: Callable[[], dict[str, str]],
        held: ExitStack,
    ) -> None:
        self.trainer = trainer
        self.settings = settings
        self.own_settings = own_settings
        self.fingerprint = fingerprint
        self.held = held

    def find(self) -> Start:
        """Find where to start; lock the folder of the run that is resumed, or create that of a new run.

        Raises:
            RunFinished: the run to resume has finished.
            MachineError: another process is writing the run, or the folder is not writable.
            MissingFileError: no such checkpoint.
            CheckpointError: the checkpoint is of a run with other settings.
        """
        while True:  # again where another process was faster
            runs = folder_of_runs(self.trainer)
            new = None if runs is None or self._logger_arguments().get("version") is not None else next_version(runs)
            start = self._start()
            if start.finished:
                raise RunFinished(finished(start))
            check_writable(start.folder or runs or Path(self.trainer.default_root_dir))
            if start.folder:
                self._log_into(start.folder)
            if self.trainer.fast_dev_run or not self.trainer.is_global_zero:  # type: ignore[attr-defined]
                return start
            if self._lock(start, new):
                return start

    def create_next(self) -> None:
        """Create the folder of a command that trains nothing, unless its logger names one.

        Raises:
            MachineError: the folder of runs is not writable.
        """
        runs = folder_of_runs(self.trainer)
        if runs and self.trainer.is_global_zero and self._logger_arguments().get("version") is None:
            check_writable(runs)
            while not self._create(next_version(runs), {}):
                pass  # another process has created it

    def _start(self) -> Start:
        settings = self.settings
        if settings.ckpt_path is not None:
            start = start_from_checkpoint(settings.ckpt_path, self.trainer)
            if not settings.allow_changed_settings:
                now = keep_accumulation(start.fingerprint, self.own_settings())
                known = {key: text for key, text in start.fingerprint.items() if key in now}
                check_fingerprint({FINGERPRINT: known}, now)
            return start
        requeued = SLURMEnvironment.detect() and any(Path(self.trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
        if not settings.auto_resume or settings.trainer.fast_dev_run or requeued:  # Lightning resumes requeued jobs
            return Start()
        if self.trainer.is_global_zero and (runs := folder_of_runs(self.trainer)):
            refuse_running(runs, self.own_settings())
        return find_resumable_run(self.trainer, self.own_settings(), self.fingerprint)

    def _lock(self, start: Start, new: Path | None) -> bool:
        """Lock the run folder until the command ends.

        Args:
            start: where the run starts.
            new: the folder to create for a new run; None if the logger names the folder.

        Returns:
            False if another process has created the folder, or has continued the run to resume, in the meantime.
        """
        settings = self.own_settings()
        if start.folder:
            with ExitStack() as locked_run:
                locked_run.enter_context(lock_run(start.folder, settings))
                if read_run(start.folder).newest_checkpoint() != (start.checkpoint and start.checkpoint.absolute()):
                    return False
                self.held.push(locked_run.pop_all())
        elif new:
            return self._create(new, settings)
        else:
            folder = Path(self.trainer.log_dir or self.trainer.default_root_dir).absolute()
            check_outputs(run_files(folder), inputs_of(self.settings))
            folder.mkdir(parents=True, exist_ok=True)
            of_tensorboard = self.trainer.log_dir is None or folder_of_runs(self.trainer)
            # the folder of another logger must be empty at first, or CSVLogger warns
            lock = lock_run(folder, settings) if of_tensorboard else locked(folder, "trainer.logger")
            self.held.enter_context(lock)
        return True

    def _create(self, new: Path, settings: Mapping[str, str]) -> bool:
        """Create and lock a new run folder, and log into it; it is removed at the end if it is empty."""
        lock = create_run(new, settings)
        if lock is None:
            return False
        self.held.callback(remove_if_empty, new)
        self.held.enter_context(lock)
        self._log_into(new)
        return True

    def _log_into(self, folder: Path) -> None:
        """Let the logger write into an existing run folder."""
        given = self._logger_arguments()
        given |= {"save_dir": folder.parent.parent, "name": folder.parent.name, "version": folder.name}
        self.trainer.logger = TensorBoardLogger(**given)

    def _logger_arguments(self) -> dict[str, Any]:
        """The arguments of the one logger in the config; for Lightning's default logger, its version."""
        chosen = self.settings.trainer.logger
        chosen = chosen[0] if isinstance(chosen, list) else chosen
        if chosen in (None, True):
            return {"version": SLURMEnvironment.job_id()}
        return {**chosen.get("init_args", {}), **chosen.get("dict_kwargs", {})}


def run_files(folder: Path) -> list[Output]:
    """The files of a run that are replaced, in a folder that is not the run's own.

    Args:
        folder: the run folder.
    """
    starts = {CONFIG: "# lightning.pytorch==", RECORD: '{\n "finished_at_step"', REPLIES: '{"row"'}
    option = "the run folder (trainer.default_root_dir, trainer.logger)"
    return [output_file(option, folder / name, text_that_starts(start)) for name, start in starts.items()]


def outputs_of(command: str, settings: Namespace) -> list[Output]:
    """The files that settings name to write.

    Args:
        command: that is run.
        settings: of the command, parsed.

    Raises:
        SettingError: one of them cannot be a path.
    """
    outputs = [bad_rows_output(settings.data.bad_rows_file)] if settings.data.bad_rows_file else []
    if command == "predict" and settings.replies.path:
        outputs.append(replies_output(settings.replies.path))
    return outputs


def inputs_of(settings: Namespace) -> dict[str, Any]:
    """What the settings name to read, by setting.

    Args:
        settings: of a command, parsed.
    """
    sources = {f"data.{name}": settings.data[name] for name in SOURCES}
    return sources | {"--config": [str(file) for file in settings.config or []]}


def remove_if_empty(folder: Path) -> None:
    """Remove a run folder in which nothing was written, because the command failed before."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
