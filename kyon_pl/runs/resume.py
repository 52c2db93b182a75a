"""Which run a `fit` continues, and from which checkpoint."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from kyon_pl.errors import CheckpointError, MissingFileError
from kyon_pl.runs.checkpoint_io import read_checkpoint, write_whole
from kyon_pl.runs.fingerprint import FINGERPRINT, differences, in_terms_of, shorten
from kyon_pl.runs.integrity import fault_of_checkpoint, read_marker

log = logging.getLogger(__name__)

RECORD = "run.json"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Run:
    """A run on the disk.

    Attributes:
        folder: the run folder.
        fingerprint: of its settings, base and data; empty if nothing is recorded.
        finished_at_step: the optimizer step at which it ended; None if it has not.
    """

    folder: Path
    fingerprint: dict[str, str]
    finished_at_step: int | None

    def newest_checkpoint(self) -> Path | None:
        """See `newest_checkpoint`."""
        return newest_checkpoint(self.folder / CHECKPOINTS)


def write_record(folder: Path, fingerprint: Mapping[str, str], finished_at_step: int | None) -> None:
    """Write a run's `run.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"finished_at_step": finished_at_step, "fingerprint": dict(fingerprint)}
    write_whole(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_run(folder: Path) -> Run:
    """A run from its folder.

    Raises:
        CheckpointError: there is a record, and it is not one of ours.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return Run(folder, dict(record["fingerprint"]), record["finished_at_step"])
    except FileNotFoundError:
        return Run(folder, {}, None)
    except (ValueError, KeyError, TypeError) as error:
        fix = "Remove it, and name a checkpoint of the run with --ckpt_path to go on"
        raise CheckpointError(str(folder / RECORD), "it is not the record of a run", fix) from error


def runs_in(folder: Path) -> list[Run]:
    """The runs `version_N` in a folder, the highest number first."""
    folders = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    numbered = [(int(match[1]), path) for path in folders if (match := re.fullmatch(r"version_(\d+)", path.name))]
    return [read_run(path) for _, path in sorted(numbered, reverse=True)]


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most optimizer steps behind it that is whole; those that are not are passed over aloud.

    Args:
        folder: of the checkpoints.
    """
    whole = []
    for file in sorted(folder.glob("*.ckpt")):
        if fault := fault_of_checkpoint(file):
            log.info("checkpoint %s is skipped: %s", file, fault)
        elif (marker := read_marker(file.with_suffix("")))["resumable"]:
            whole.append((marker["step"], file))
    return max(whole)[1] if whole else None


def last_checkpoint(runs: list[Run], folder: Path) -> Path:
    """What `--ckpt_path last` means: the newest whole checkpoint of the newest run that has one.

    Args:
        runs: the newest first.
        folder: where they were looked for.

    Raises:
        MissingFileError: there is none.
    """
    for run in runs:
        if newest := run.newest_checkpoint():
            return newest
    raise MissingFileError(
        where="--ckpt_path last",
        found=f"no run in {folder} has a whole checkpoint",
        fix="Leave --ckpt_path out for a new run, or name the file of a checkpoint",
    )


BESIDE_SHOWN = 5  # checkpoints, where one that is asked for is not there
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
