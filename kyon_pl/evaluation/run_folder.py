"""A run folder as it is read for a report: whatever of it is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from kyon_pl.errors import MissingFileError
from kyon_pl.evaluation.held_out import REPLIES
from kyon_pl.logs import RUN_LOG
from kyon_pl.runs.curves import Curves, read_curves

RECORD, CONFIG = "run.json", "config.yaml"
_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} rank (\d+) (\w+) +(.*)")


@dataclass(frozen=True)
class LogLine:
    """An event of `run.log`.

    Attributes:
        level: `INFO`, `WARNING` or `ERROR`.
        text: one line.
    """

    time: datetime
    level: str
    text: str


@dataclass(frozen=True)
class RunFolder:
    """What a run has left.

    Attributes:
        folder: the run folder.
        name: the end of its path, as long as it takes to tell it from others.
        settings: of `config.yaml`, dotted name to value.
        finished_at_step: the optimizer step at which it ended; None if it has not.
        log: of the first rank.
        curves: as drawn.
        replies: a row each, as `HeldOutReplies` writes them.
        missing: what is not there or cannot be read, in words.
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
        """The newest that any curve has."""
        return max((points[-1][0] for points in self.curves.values() if points), default=0)

    def state(self) -> str:
        """Whether it has finished, and if not, what it said last."""
        if self.finished_at_step is not None:
            return f"finished at step {self.finished_at_step}"
        last = f"; its last line: {self.log[-1].text}" if self.log else ""
        return f"NOT FINISHED: curves up to step {self.last_step}{last}"

    def last_start(self) -> list[LogLine]:
        """The lines since the run was started, or gone on with, for the last time."""
        starts = [place for place, line in enumerate(self.log) if line.text.startswith("kyon-pl fit: ")]
        return self.log[starts[-1] if starts else 0 :]


def read_run_folders(folders: Sequence[Path]) -> list[RunFolder]:
    """Read what is there.

    Args:
        folders: different ones, such as `lightning_logs/version_N`.

    Raises:
        MissingFileError: one is no run folder: not even one of the files of a run is there.
    """
    return [_read_run_folder(folder, name) for folder, name in zip(folders, names_apart(folders), strict=True)]


def names_apart(folders: Sequence[Path]) -> list[str]:
    """The last two parts of their paths, and more of them where these are the same."""
    paths, names = [folder.absolute().parts for folder in folders], list[str]()
    parts = 2
    while len(set(names)) < len(paths):
        names = ["/".join(path[-parts:]) for path in paths]
        parts += 1
    return names


def _read_run_folder(folder: Path, name: str) -> RunFolder:
    names = (RECORD, CONFIG, RUN_LOG, "events.out.tfevents.*")
    if not any(any(folder.glob(name)) for name in names):
        fix = f"Name a run folder, such as lightning_logs/version_0; it has one of: {', '.join(names)}."
        raise MissingFileError(f"run {folder}", "there is no run in it", fix)
    missing: list[str] = []
    record, config = _read(folder / RECORD, missing), _read(folder / CONFIG, missing)
    curves = read_curves(folder)
    if not curves:
        missing.append("no curves in TensorBoard's files")
    return RunFolder(
        folder,
        name,
        dict(_flat(config)),
        record.get("finished_at_step"),
        list(_log_lines(folder / RUN_LOG, missing)),
        curves,
        _replies(folder / REPLIES, missing),
        missing,
    )


def _read(file: Path, missing: list[str]) -> dict[str, Any]:
    """A mapping in YAML or JSON, which is YAML."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        found, reason = None, type(error).__name__
    else:
        reason = "no mapping"
    if not isinstance(found, dict):
        missing.append(f"{file.name} cannot be read ({reason})")
        return {}
    return found


def _replies(file: Path, missing: list[str]) -> list[dict[str, Any]]:
    if not file.is_file():
        missing.append(f"no {file.name}: held_out was null, or the run did not come that far")
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]  # written whole or not at all


def _log_lines(file: Path, missing: list[str]) -> Iterator[LogLine]:
    if not file.is_file():
        missing.append(f"no {file.name}")
        return
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if (match := _LINE.fullmatch(text)) and match[2] == "0":
            yield LogLine(datetime.fromisoformat(match[1]), match[3], match[4])


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}".lstrip("."))
    else:
        yield key.replace(".init_args", ""), value
