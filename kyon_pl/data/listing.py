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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        found = f"{path} cannot be written ({error.strerror})"
        raise MachineError(setting, found, f"Name a file that can be written, or leave {setting} out.") from None
    with file:
        yield lambda row: print(json.dumps(row, ensure_ascii=False), file=file)
