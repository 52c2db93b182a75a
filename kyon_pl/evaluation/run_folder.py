"""Reads a run folder for a report; files may be missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kyon_pl.errors import CheckpointError, MissingFileError
from kyon_pl.evaluation.held_out import REPLIES
from kyon_pl.files import entry, read_json_object, read_text, read_yaml_mapping
from kyon_pl.logs import RUN_LOG
from kyon_pl.runs.curves import Curves, read_curves

RECORD, CONFIG = "run.json", "config.yaml"
_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} rank (\d+) (\w+) +(.*)")


@dataclass(frozen=True)
class LogLine:
    """A line of `run.log`.

    Attributes:
        time: when it was logged.
        level: `INFO`, `WARNING` or `ERROR`.
        text: the message.
    """

    time: datetime
    level: str
    text: str


@dataclass(frozen=True)
class RunFolder:
    """The contents of a run folder.

    Attributes:
        folder: the run folder.
        name: the end of its path, long enough to be unique in the report.
        settings: the settings of `config.yaml`, dotted name to value.
        finished_at_step: the last optimizer step; None if the run has not finished.
        log: the lines of rank 0.
        curves: the curves of TensorBoard's files.
        replies: the rows that `HeldOutReplies` wrote.
        missing: descriptions of files that are missing or cannot be read.
    """

    folder: Path
    name: str
    settings: Mapping[str, Any]
    finished_at_step: int | None
    log: list[LogLine]
    curves: Curves
    replies: list[dict[str, Any]]
    missing: list[str]

    @property
    def last_step(self) -> int:
        """The newest step of any curve."""
        return max((points[-1][0] for points in self.curves.values() if points), default=0)

    def state(self) -> str:
        """Whether the run has finished; if not, its last step and log line."""
        if self.finished_at_step is not None:
            return f"finished at step {self.finished_at_step}"
        state = f"NOT FINISHED: curves up to step {self.last_step}"
        return f"{state}; its last line: {self.log[-1].text}" if self.log else state

    def base_and_tuned(self, name: str) -> tuple[float | None, float | None]:
        """A metric of the base and of the newest step; the loss of the base is the loss at step 0.

        Args:
            name: without `val/`.
        """
        tuned = self.curves.get(f"val/{name}", [])
        base = self.curves.get(f"val/{name.replace('replies/', 'base_replies/')}", []) if "replies/" in name else tuned
        return base[0][1] if base and base[0][0] == 0 else None, tuned[-1][1] if tuned else None

    def last_start(self) -> list[LogLine]:
        """The log lines since the run was last started or resumed."""
        starts = [number for number, line in enumerate(self.log) if line.text.startswith("kyon-pl fit: ")]
        return self.log[starts[-1] if starts else 0 :]


def read_run_folders(folders: Sequence[Path]) -> list[RunFolder]:
    """Read run folders, as far as their files exist.

    Args:
        folders: distinct folders, such as `lightning_logs/version_N`.

    Raises:
        MissingFileError: a folder contains none of the files of a run.
    """
    return [_read_run_folder(folder, name) for folder, name in zip(folders, unique_names(folders), strict=True)]


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths: one, or more until the names differ."""
    paths, names = [folder.absolute().parts for folder in folders], list[str]()
    parts = 1
    while len(set(names)) < len(paths):
        names = ["/".join(path[-parts:]) for path in paths]
        parts += 1
    return names


def _read_run_folder(folder: Path, name: str) -> RunFolder:
    names = (RECORD, CONFIG, RUN_LOG, "events.out.tfevents.*")
    if not any(any(folder.glob(name)) for name in names):
        fix = f"Name a run folder, such as lightning_logs/version_0; it contains at least one of: {', '.join(names)}."
        raise MissingFileError(f"run {folder}", "it contains no run", fix)
    missing: list[str] = []
    record = _read(read_json_object, folder / RECORD, missing)
    config = _read(read_yaml_mapping, folder / CONFIG, missing)
    finished_at = record.get("finished_at_step")
    curves = read_curves(folder)
    if not curves:
        missing.append("no curves in TensorBoard's files")
    return RunFolder(
        folder,
        name,
        dict(_flat(config)),
        finished_at if isinstance(finished_at, int) else None,
        list(_log_lines(folder / RUN_LOG, missing)),
        curves,
        _replies(folder / REPLIES, missing),
        missing,
    )


def _read(read: Callable[[Path], dict[str, Any]], file: Path, missing: list[str]) -> dict[str, Any]:
    """The content of a file; empty, and noted in `missing`, if it cannot be read."""
    try:
        return read(file)
    except (CheckpointError, MissingFileError) as error:
        missing.append(f"{file.name}: {error.found}")
        return {}


def _replies(file: Path, missing: list[str]) -> list[dict[str, Any]]:
    """The rows of `held_out_replies.jsonl`; without those that cannot be read, which are noted in `missing`."""
    try:
        lines = read_text(file).split("\n")
    except MissingFileError:
        missing.append(f"no {file.name}: held_out was null, or the run stopped before the first replies")
        return []
    except CheckpointError as error:
        missing.append(f"{file.name}: {error.found}")
        return []
    rows, faults = [], list[str]()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(_reply_row(line, f"line {number}"))
            except (CheckpointError, ValueError, RecursionError) as error:
                faults.append(str(error) if isinstance(error, CheckpointError) else f"line {number}: broken JSON")
    if faults:
        missing.append(f"{len(faults)} rows of {file.name}, which cannot be read ({faults[0]})")
    return rows


def _reply_row(line: str, where: str) -> dict[str, Any]:
    """A row with the types that `held_out.exchange` works with."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise CheckpointError(where, "it is not an object", "")
    entry(row, "prompt", str, where)
    entry(row, "reference", str, where)
    if row.get("base") is not None:
        entry(row, "base", str, where)
    replies = entry(row, "replies", list, where)
    if not replies or not all(isinstance(reply, dict) for reply in replies):
        raise CheckpointError(f"{where}: replies", "it is not a list of replies", "")
    for reply in replies:
        entry(reply, "reply", str, where)
        entry(reply, "stopped", bool, where)
    return {"row": None, "base": None} | row


def _log_lines(file: Path, missing: list[str]) -> Iterator[LogLine]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
    except OSError as error:
        missing.append(f"{file.name}: it cannot be read ({error.strerror})")
        return
    if text is None:
        missing.append(f"no {file.name}")
        return
    for line in text.splitlines():
        if (match := _LINE.fullmatch(line)) and match[2] == "0" and (time := _time(match[1])):
            yield LogLine(time, match[3], match[4])


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # such as month 13
        return None


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}".lstrip("."))
    else:
        yield key.replace(".init_args", ""), value
