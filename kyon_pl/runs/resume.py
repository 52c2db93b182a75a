"""Which run a `fit` continues, and from which checkpoint."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from kyon_pl.disk import write_atomically
from kyon_pl.errors import MachineError, MissingFileError
from kyon_pl.files import entry, read_json_object
from kyon_pl.locks import Lock, in_use, read_holder
from kyon_pl.logs import from_here
from kyon_pl.runs.checkpoint_io import read_checkpoint
from kyon_pl.runs.fingerprint import FINGERPRINT, differences, keep_accumulation, shorten
from kyon_pl.runs.integrity import CHECKPOINTS, FORMAT_VERSION, check_format_version, newest_checkpoint

log = logging.getLogger(__name__)

RECORD, LOCK = "run.json", "run.lock"
SHOWN_FILES = 5
_WAIT = "Wait until it is done, or stop it"
Fingerprint = Callable[[], dict[str, str]]


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        folder: the run folder.
        fingerprint: of settings, base and data; empty if the folder has no record.
        finished_at_step: optimizer step at which the run finished; None if it has not.
    """

    folder: Path
    fingerprint: dict[str, str]
    finished_at_step: int | None

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint that the run can be resumed from; None if there is none."""
        return newest_checkpoint(self.folder / CHECKPOINTS, resumable=True)


@dataclass(frozen=True)
class Start:
    """Where a fit starts.

    Attributes:
        folder: folder of the run that is continued; None for a new run.
        checkpoint: the checkpoint to resume from; None for the first step.
        finished: whether the run has finished, so that there is nothing to do.
        fingerprint: of the run or checkpoint that is continued; empty for a new run.
    """

    folder: Path | None = None
    checkpoint: Path | None = None
    finished: bool = False
    fingerprint: dict[str, str] = field(default_factory=dict, compare=False)


def write_record(folder: Path, fingerprint: Mapping[str, str], finished_at_step: int | None) -> None:
    """Write the `run.json` of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"finished_at_step": finished_at_step, "format_version": FORMAT_VERSION, "fingerprint": dict(fingerprint)}
    write_atomically(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_run(folder: Path) -> Run:
    """Read a run from its folder.

    Raises:
        CheckpointError: `run.json` cannot be read, or a newer kyon_pl wrote it.
    """
    file, fix = folder / RECORD, "Remove it, and resume the run with --ckpt_path and the file of a checkpoint"
    try:
        record = read_json_object(file, fix)
    except MissingFileError:
        return Run(folder, {}, None)
    check_format_version(record, file)
    fingerprint = entry(record, "fingerprint", dict, file, fix)
    for key in fingerprint:
        entry(fingerprint, key, str, f"{file}: fingerprint", fix)
    finished = record.get("finished_at_step")
    return Run(folder, fingerprint, None if finished is None else entry(record, "finished_at_step", int, file, fix))


def runs_in(folder: Path) -> list[Run]:
    """The runs `version_N` in a folder, the highest number first."""
    return [read_run(path) for _, path in sorted(_numbered(folder), reverse=True)]


def find_similar_run(folder: Path, settings: Mapping[str, str], without: set[str]) -> Run | None:
    """The newest run with the same settings, as far as they need no files and no trainer.

    Args:
        folder: of the runs.
        settings: the part of the fingerprint to compare.
        without: keys that may differ.

    Raises:
        CheckpointError: the record of a run cannot be read.
    """
    for run in runs_in(folder):
        own = _settings_of(run, settings)
        if own and not {key for key in own.keys() | settings.keys() if own.get(key) != settings.get(key)} - without:
            return run
    return None


def next_version(folder: Path) -> Path:
    """The folder of the next new run in a folder of runs.

    A folder that a command left because it was killed before it wrote anything is used again.
    """
    number, newest = max(_numbered(folder), default=(-1, None))
    return newest if newest and _is_abandoned(newest) else folder / f"version_{number + 1}"


def _is_abandoned(folder: Path) -> bool:
    """Whether a run folder has at most a lock that no process holds; the lock is removed."""
    if any(path.name != LOCK for path in folder.iterdir()):
        return False
    try:
        lock_run(folder, {}).release()
    except MachineError:
        return False
    return True


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    folders = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return [(int(match[1]), path) for path in folders if (match := re.fullmatch(r"version_(\d+)", path.name))]


def lock_run(folder: Path, settings: Mapping[str, str]) -> Lock:
    """Lock an existing run folder, for as long as the run lasts.

    Args:
        folder: the run folder.
        settings: of the run, for `refuse_running`.

    Raises:
        MachineError: another process is writing the run.
    """
    return Lock(folder / LOCK, from_here(folder), _WAIT, settings)


def create_run(folder: Path, settings: Mapping[str, str]) -> Lock | None:
    """Create a run folder that is locked from its first moment on.

    Args:
        folder: the new run folder.
        settings: of the run, for `refuse_running`.

    Returns:
        The lock; None if another process has created the folder.
    """
    new = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}")
    new.mkdir(parents=True)
    lock = lock_run(new, settings)
    try:
        new.rename(folder)
    except OSError as error:
        lock.release()
        new.rmdir()
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return None
    lock.file = folder / LOCK
    return lock


def refuse_running(folder: Path, settings: Mapping[str, str]) -> None:
    """Refuse to start the same run a second time while it is running.

    Args:
        folder: of the runs.
        settings: the part of the fingerprint that needs no files.

    Raises:
        MachineError: a process is writing a run with the same settings; the message names it.
    """
    for _, run_folder in _numbered(folder):
        holder = read_holder(run_folder / LOCK)
        if holder is None:
            continue
        run = Run(run_folder, dict(holder.settings), None)
        if not differences(run.fingerprint, _comparable(dict(settings), run)):
            refuse_if_running(run_folder)


def refuse_if_running(run_folder: Path) -> None:
    """Refuse to go on with a run that another process is writing.

    Args:
        run_folder: of the run.

    Raises:
        MachineError: there is such a process; the message names it.
    """
    if holder := read_holder(run_folder / LOCK):
        raise in_use(from_here(run_folder), holder, f"{_WAIT}, or start another run with --auto_resume false")


def folder_of_runs(trainer: Trainer) -> Path | None:
    """The folder that holds the run folders of a trainer; None if its runs have no folders of their own."""
    if len(trainer.loggers) != 1 or not isinstance(logger := trainer.loggers[0], TensorBoardLogger) or logger.sub_dir:
        return None
    return Path(logger.root_dir).absolute()


def find_checkpoint(path: str, trainer: Trainer) -> Path:
    """The file for `--ckpt_path`.

    Args:
        path: a file, or `last`: the newest complete checkpoint of the newest run that has one.
        trainer: trainer whose runs are searched.

    Raises:
        MissingFileError: there is no such checkpoint.
    """
    if path == "last":
        folder = folder_of_runs(trainer) or Path(trainer.default_root_dir) / "lightning_logs"
        return _last_checkpoint(folder)
    if not Path(path).is_file():
        files = (file for file in Path(path).parent.glob("*.ckpt") if file.is_file())
        names = [file.name for file in sorted(files, key=lambda file: file.stat().st_mtime)]
        others = f"; the folder has {', '.join(names[-SHOWN_FILES:])}" if names else ""
        raise MissingFileError(
            where="--ckpt_path",
            found=f"there is no file '{path}'{others}",
            fix=f"Checkpoints are in lightning_logs/version_N/{CHECKPOINTS}; 'last' is the newest of the newest run",
        )
    return Path(path)


def start_from_checkpoint(path: str, trainer: Trainer) -> Start:
    """The start for `--ckpt_path`: a run's newest checkpoint continues that run, an older one starts a new run.

    Args:
        path: as `find_checkpoint` takes it.
        trainer: trainer whose runs are searched.

    Raises:
        MissingFileError: there is no such checkpoint.
        CheckpointError: the checkpoint cannot be read.
    """
    checkpoint = find_checkpoint(path, trainer)
    saved = read_checkpoint(checkpoint).get(FINGERPRINT, {})
    folder = checkpoint.absolute().parent.parent
    if folder.parent != folder_of_runs(trainer) or checkpoint.absolute() != read_run(folder).newest_checkpoint():
        return Start(None, checkpoint, fingerprint=saved)
    return Start(folder, checkpoint, fingerprint=saved)


def find_resumable_run(trainer: Trainer, settings: dict[str, str], fingerprint: Fingerprint) -> Start:
    """The start for `auto_resume`: continue the newest run with the same settings, base and data, or start a new run.

    Args:
        trainer: trainer whose runs are searched.
        settings: the part of the fingerprint that needs no files.
        fingerprint: returns the whole fingerprint. It reads base and data, so it is called only if a run has the same
            settings.

    Raises:
        CheckpointError: the record of a run cannot be read.
    """
    folder = folder_of_runs(trainer)
    if folder is None:
        log.info("auto_resume: off, because runs can only be resumed with exactly one TensorBoardLogger")
        return Start()
    runs = [run for run in runs_in(folder) if run.fingerprint]
    same_settings = [run for run in runs if not differences(_settings_of(run, settings), _comparable(settings, run))]
    now = fingerprint() if same_settings else settings
    for run in same_settings:
        if run.fingerprint == _comparable(now, run):
            return Start(run.folder, run.newest_checkpoint(), run.finished_at_step is not None, run.fingerprint)
    if runs:
        newest = runs[0].fingerprint if same_settings else _settings_of(runs[0], settings)
        changed = shorten(differences(newest, now))
        log.info("starting a new run: settings differ from %s (%s)", runs[0].folder.name, changed)
    return Start()


def _settings_of(run: Run, settings: Mapping[str, str]) -> dict[str, str]:
    """The part of a run's fingerprint that corresponds to the settings alone."""
    return {key: text for key, text in run.fingerprint.items() if ": " not in key or key in settings}


def _comparable(fingerprint: dict[str, str], run: Run) -> dict[str, str]:
    """A fingerprint with the accumulation of a run, which is not adapted to a finished run."""
    return keep_accumulation(run.fingerprint, fingerprint, adapt=run.finished_at_step is None)


def _last_checkpoint(folder: Path) -> Path:
    for run in runs_in(folder):
        if newest := run.newest_checkpoint():
            return newest
    raise MissingFileError(
        where="--ckpt_path last",
        found=f"no run in {folder} has a complete checkpoint",
        fix="Leave --ckpt_path out to start a new run, or name the file of a checkpoint",
    )
