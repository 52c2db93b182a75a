"""A JSONL file that is only appended to: each row is on the disk before the next one is made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kyon_pl.disk import name_in_errors, sync
from kyon_pl.errors import CheckpointError
from kyon_pl.files import entry

_FIX = "Remove this line, or name another folder with --output"


class Journal:
    """The rows of a file, and how more are appended. One process at a time may write it.

    What a killed process wrote of its last row is cut off.

    Args:
        path: the file; it need not exist, its folder must.
        kinds: the types of a row by key, see `kyon_pl.files.entry`.

    Attributes:
        rows: all rows, in the order of the file.

    Raises:
        CheckpointError: the file cannot be read, or a line is no such row.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, kinds: Mapping[str, type]) -> None:
        self.path = path
        if path.exists() and not path.is_file():  # a pipe would block
            raise CheckpointError(str(path), "it is not a regular file", "Name another folder with --output")
        with name_in_errors(path):
            written = path.read_bytes() if path.exists() else b""
            *lines, broken = written.split(b"\n")
            self.rows = [self._row(line, number, kinds) for number, line in enumerate(lines, start=1)]
            if broken:
                os.truncate(path, len(written) - len(broken))
            if not path.exists():
                path.touch()
                sync(path.parent)

    def _row(self, line: bytes, number: int, kinds: Mapping[str, type]) -> dict[str, Any]:
        where = f"{self.path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # of the JSON, or no UTF-8
            raise CheckpointError(where, "broken JSON", _FIX) from None
        if not isinstance(row, dict):
            raise CheckpointError(where, "it is not an object", _FIX)
        return {key: entry(row, key, kind, where, _FIX) for key, kind in kinds.items()}

    def append(self, row: dict[str, Any]) -> None:
        """Append a row, and wait until it is on the disk.

        Raises:
            OSError: it names the file.
        """
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with name_in_errors(self.path), self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
