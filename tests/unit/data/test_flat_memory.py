"""Memory does not grow with the rows: files may be larger than it. benchmarks/data_scale.py has a million of them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from role_folder import dialogue, write_lines, write_role

from kyon_pl.data import read_jsonl_file
from kyon_pl.data.build import build_data
from kyon_pl.data.readers import read_rows

RNG = random.Random(0)


def text(characters: int) -> str:
    """That no file format makes smaller."""
    return "".join(map(chr, RNG.choices(range(0x4E00, 0x9F00), k=characters)))


def grown_mib(work: Callable[[], object]) -> float:
    """By how much this process's private memory grows in the meantime, at most."""
    start, peak, done = private_mib(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, private_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    kept = work()
    peak = max(peak, private_mib())
    done.set()
    watcher.join()
    del kept
    return peak - start


def private_mib() -> float:
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024


def write_dialogues(role: Path, rows: int) -> None:
    turns = [f"{name}:{text(200)}" for _ in range(10) for name in ("阿禾", "小棹")]
    objects: list[object] = [dialogue(f"阿禾:{number}", f"小棹:{number}", *turns[2:]) for number in range(rows // 10)]
    write_lines(role / "dialogues/quay.jsonl", objects)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
def test_build_data_keeps_no_rows(tmp_path: Path) -> None:
    """Of 8,000 rows more, a number or two each; kept, they would be seen."""
    texts = {f"{number}.txt": text(40) for number in range(4)}
    role, output = write_role(tmp_path / "小棹", texts=texts), tmp_path / "rows.jsonl"
    grown = []
    for rows in (2000, 10_000):  # the first run imports what it needs, and fills what comes again
        write_dialogues(role, rows)
        grown.append(grown_mib(lambda: build_data(str(role), str(output))))
    assert grown[1] < 10
    assert grown_mib(lambda: read_jsonl_file(output)) > 20


def test_parquet_is_read_in_pieces(tmp_path: Path) -> None:
    """Of its twenty row groups, one at a time."""
    file = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"context": [text(250) for _ in range(8000)]}), file, row_group_size=400)
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() - before for _ in read_rows(file))
    assert 0 < most < file.stat().st_size / 2
