"""Rows of text to a file, which is whole or not there at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from kyon_pl.errors import SettingError

COLUMNS = ("context", "target", "character", "question", "dialogue", "source")
"""The first two are trained on. `dialogue`: role, file and number, for a split by it; null if not known."""

Rows = Iterator[Mapping[str, str | None]]
_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
_ROWS_AT_ONCE = 10_000


def write_rows(path: Path, rows: Iterable[Mapping[str, str | None]]) -> None:
    """Write rows beside their place, and rename the file when it is whole; an old one stays until then.

    Args:
        path: ends in `.parquet` or `.jsonl`; its folder is made if need be.
        rows: with `COLUMNS`; read as they are written.

    Raises:
        SettingError: another ending.
    """
    if path.suffix not in WRITERS:
        raise SettingError("output", f"{path} ends in {path.suffix!r}", f"Use one of: {', '.join(WRITERS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        WRITERS[path.suffix](part, iter(rows))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_jsonl(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _write_parquet(path: Path, rows: Rows) -> None:
    with parquet.ParquetWriter(path, _SCHEMA) as writer:
        while batch := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(batch, _SCHEMA))


WRITERS: dict[str, Callable[[Path, Rows], None]] = {".parquet": _write_parquet, ".jsonl": _write_jsonl}
