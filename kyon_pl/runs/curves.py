"""Curves of runs, read from TensorBoard's event files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
    LegacyEventFileLoader,
)
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

from kyon_pl.errors import CheckpointError

Curves = Mapping[str, list[tuple[int, float]]]
"""Maps tags, such as `val/loss`, to (optimizer step, value), ordered by step."""


def event_files(folder: Path) -> list[Path]:
    """TensorBoard's event files of a run folder, in the order of their creation.

    Names contain time in seconds, host, process id and a counter. TensorBoard orders them as strings, which puts the
    tenth file of a process before the second.

    Args:
        folder: folder with the event files.
    """
    return sorted((file for file in folder.glob("events.out.tfevents.*") if file.is_file()), key=_numbers_as_numbers)


def _numbers_as_numbers(file: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", file.name)]


def read_curves(folder: Path) -> Curves:
    """Read all scalars from the event files of a run folder.

    A resumed run replaces the points from its first step on; of two values of a step, the later one counts.

    Args:
        folder: folder with the event files; without any, the result is empty.

    Raises:
        CheckpointError: a file cannot be read.
    """
    curves: dict[str, dict[int, float]] = {}
    for event in (event for file in event_files(folder) for event in _events(file)):
        if event.session_log.status == SessionLog.START:
            curves = {tag: {step: curve[step] for step in curve if step < event.step} for tag, curve in curves.items()}
        for value in event.summary.value:
            if value.HasField("simple_value"):
                curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: sorted(curve.items()) for tag, curve in curves.items() if curve}


def _events(file: Path) -> Iterator[Event]:
    """The events of a file, up to the first one that is cut short or altered."""
    try:
        yield from LegacyEventFileLoader(str(file)).Load()
    except (OSError, DecodeError) as error:
        found = f"it cannot be read ({error.strerror if isinstance(error, OSError) else error})"
        raise CheckpointError(str(file), found, "Copy it again, or move it out of the run folder") from error
