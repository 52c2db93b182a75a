"""Run folders: which run a command goes on with, and from which checkpoint.

A run folder holds `run.json`: the fingerprint of all that the result depends on, and the step at which the run ended,
if it did. Its checkpoints lie in `checkpoints`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kyon_pl.errors import CheckpointError, MissingFileError
from kyon_pl.marker import fault_of_checkpoint, read_marker
from kyon_pl.training.checkpoint_io import write_whole

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
