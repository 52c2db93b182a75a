"""A list of rows as JSONL, written as they turn up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kyon_pl.errors import MachineError


@contextmanager
def listing(path: Path, setting: str) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """A function that writes one row into the list.

    Args:
        path: of the list; its folder is made if need be.
        setting: that names it, for the error.

    Raises:
        MachineError: nothing can be written there.
    """
    with _explained(path, setting):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")

    def write(row: Mapping[str, object]) -> None:
        with _explained(path, setting):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    try:
        yield write
    finally:
        with _explained(path, setting):  # what is left in the buffer may find the disk full
            file.close()


@contextmanager
def _explained(path: Path, setting: str) -> Iterator[None]:
    """Around what touches the list alone: other files that are not there have words of their own."""
    try:
        yield
    except OSError as error:
        found = f"{path} cannot be written ({error.strerror})"
        raise MachineError(setting, found, f"Name a file that can be written, or leave {setting} out.") from None
