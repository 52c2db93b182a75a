"""Memory does not grow with the number of rows. benchmarks/data_scale.py has a million of them."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet
from role_folder import dialogue, write_lines, write_role

from kyon_pl.data import read_jsonl_file
from kyon_pl.data.reading.files import read_rows
from kyon_pl.roles.build import build_data

RNG = random.Random(0)


def text(characters: int) -> str:
    """Random characters, which no file format compresses."""
    return "".join(map(chr, RNG.choices(range(0x4E00, 0x9F00), k=characters)))


def peak_mib(work: Callable[[], object]) -> float:
    """Peak of Python's allocations; the resident size would miss what reuses freed memory."""
    tracemalloc.start()
    kept = work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del kept
    return peak / 2**20


def write_dialogues(role: Path, rows: int) -> None:
    turns = [f"{name}:{text(200)}" for _ in range(10) for name in ("阿禾", "小棹")]
    objects: list[object] = [dialogue(f"阿禾:{number}", f"小棹:{number}", *turns[2:]) for number in range(rows // 10)]
    write_lines(role / "dialogues/quay.jsonl", objects)


def test_build_data_keeps_no_rows(tmp_path: Path) -> None:
    """4,000 rows more add a number or two each; kept rows would show."""
    role, output = (
        write_role(tmp_path / "小棹"),
        tmp_path / "rows.jsonl",
    )  # no memories: slow to trace
    peaks = []
    for rows in (10, 1000, 5000):  # the first run imports modules; a batch is a thousand rows
        write_dialogues(role, rows)
        peaks.append(peak_mib(lambda: build_data(str(role), str(output))))
    assert peaks[2] - peaks[1] < 4, peaks
    assert peak_mib(lambda: read_jsonl_file(output)) - peaks[1] > 10, peaks


def test_parquet_is_read_in_pieces(tmp_path: Path) -> None:
    """One of its twenty row groups at a time."""
    file = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"context": [text(250) for _ in range(8000)]}), file, row_group_size=400)
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() - before for _ in read_rows(file))
    assert most < file.stat().st_size / 2
