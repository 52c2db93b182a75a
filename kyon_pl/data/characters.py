"""Role data under the original's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from kyon_pl.data.readers import Unreadable, json_lines, must_exist
from kyon_pl.errors import DataError


def read_jsonl_file(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """All objects of a file of JSON lines; several may share a line.

    The original skipped what it could not read, and so took a file with all its objects on one line for an empty one.

    Args:
        path: the file.

    Raises:
        MissingFileError: there is no such file; it is a `FileNotFoundError` too.
        DataError: a line holds something else than objects.
    """
    must_exist(Path(path))
    rows = []
    for number, row in json_lines(Path(path)):
        if not isinstance(row, dict):
            found = row.problem if isinstance(row, Unreadable) else f"{type(row).__name__} in place of an object"
            raise DataError(f"{path}, line {number}", found, "Correct the line: one JSON object, in UTF-8.")
        rows.append(row)
    return rows


def collate_fn(batch: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """The inputs and the answers of a batch of `CharacterDataset` items.

    Args:
        batch: items with `input` and `answer`.
    """
    return [item["input"] for item in batch], [item["answer"] for item in batch]
