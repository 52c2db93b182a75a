"""Which run a `fit` goes on with, and from which checkpoint.

Every rank finds the same answer: all of them read the disk before any of them writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from kyon_pl.errors import MissingFileError
from kyon_pl.training.checkpoint_io import read_checkpoint
from kyon_pl.training.elastic import in_terms_of
from kyon_pl.training.fingerprint import FINGERPRINT, differences, shorten
from kyon_pl.training.resume import CHECKPOINTS, Run, last_checkpoint, read_run, runs_in

BESIDE_SHOWN = 5  # checkpoints, where one that is asked for is not there
log = logging.getLogger(__name__)

Fingerprint = Callable[[], dict[str, str]]


@dataclass(frozen=True)
class Start:
    """Where a fit starts.

    Attributes:
        folder: of the run that goes on; None for a new one.
        checkpoint: None for the beginning.
        finished: the run has ended already, and there is nothing to do.
        fingerprint: of the run that goes on, or of that of the checkpoint; empty for the beginning of a new run.
    """

    folder: Path | None = None
    checkpoint: Path | None = None
    finished: bool = False
    fingerprint: dict[str, str] = field(default_factory=dict, compare=False)


def start_from(path: str, trainer: Trainer) -> Start:
    """Where `--ckpt_path` leads: the newest checkpoint of a run goes on in its folder, an older one in a new folder.

    Args:
        path: of a checkpoint, or `last`.
        trainer: whose runs are meant.

    Raises:
        MissingFileError: there is no such checkpoint.
    """
    checkpoint = find_checkpoint(path, trainer)
    saved = read_checkpoint(checkpoint).get(FINGERPRINT, {})
    folder = checkpoint.absolute().parent.parent
    if folder.parent != folder_of_runs(trainer) or checkpoint.absolute() != read_run(folder).newest_checkpoint():
        return Start(None, checkpoint, fingerprint=saved)
    return Start(folder, checkpoint, fingerprint=saved)


def find_checkpoint(path: str, trainer: Trainer) -> Path:
    """The file that `--ckpt_path` means.

    Raises:
        MissingFileError: there is no such checkpoint.
    """
    if path == "last":
        folder = folder_of_runs(trainer) or Path(trainer.default_root_dir) / "lightning_logs"
        return last_checkpoint(runs_in(folder), folder)
    if not Path(path).is_file():
        files = (file for file in Path(path).parent.glob("*.ckpt") if file.is_file())
        beside = [file.name for file in sorted(files, key=lambda file: file.stat().st_mtime)]
        there = f"; there are {', '.join(beside[-BESIDE_SHOWN:])}" if beside else ""
        raise MissingFileError(
            where="--ckpt_path",
            found=f"there is no file '{path}'{there}",
            fix=f"Checkpoints lie in lightning_logs/version_N/{CHECKPOINTS}; 'last' is the newest of the newest run",
        )
    return Path(path)


def start_by_itself(trainer: Trainer, settings: dict[str, str], fingerprint: Fingerprint) -> Start:
    """What `auto_resume` does: go on with the newest run that was started with the same settings, base and data.

    Args:
        trainer: whose runs are meant.
        settings: the part of the fingerprint that needs no files.
        fingerprint: tells all of it; it reads base and data, and is asked only if there is a run with these settings.
    """
    folder = folder_of_runs(trainer)
    if folder is None:
        log.info("auto_resume: off, since a run can only go on in the folder of one TensorBoardLogger")
        return Start()
    runs = [run for run in runs_in(folder) if run.fingerprint]
    alike = [run for run in runs if not differences(part(run, settings), as_in(run, settings))]
    now = fingerprint() if alike else settings
    for run in alike:
        if run.fingerprint == as_in(run, now):
            return Start(run.folder, run.newest_checkpoint(), run.finished_at_step is not None, run.fingerprint)
    if runs:
        compared = runs[0].fingerprint if alike else part(runs[0], settings)
        log.info("a new run, since %s was another: %s", runs[0].folder.name, shorten(differences(compared, now)))
    return Start()


def part(run: Run, settings: dict[str, str]) -> dict[str, str]:
    """What corresponds in a run's fingerprint to that of the settings alone."""
    return {key: text for key, text in run.fingerprint.items() if ": " not in key or key in settings}


def as_in(run: Run, now: dict[str, str]) -> dict[str, str]:
    """A fingerprint in terms of a run's; nothing is adapted to one that has ended, and has no need of it."""
    return in_terms_of(run.fingerprint, now, adapt=run.finished_at_step is None)


def folder_of_runs(trainer: Trainer) -> Path | None:
    """The folder with this trainer's run folders; None if its runs have no folders of their own."""
    if len(trainer.loggers) != 1 or not isinstance(logger := trainer.loggers[0], TensorBoardLogger) or logger.sub_dir:
        return None
    return Path(logger.root_dir).absolute()
