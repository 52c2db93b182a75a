"""Time and private memory of `build-data` and of `prepare_data`, by number of rows; time of ranking memories.

    python benchmarks/data_scale.py --rows 100000 1000000 --queries 100000

Nothing but invented text. Memory is summed over the process and all its children and sampled five times a second. Pages
of mapped cache files are not in it, because the system takes them back when it needs them. RssAnon counts a page that
children share with the process they were forked from once for each of them, Pss_Anon once in all.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kyon_pl.roles.retrieval import Retriever
from kyon_pl.roles.role import Role

DIMENSIONS = 1536  # of the vectors in the published role folders
LETTERS = [chr(code) for code in range(0x4E00, 0x55D0)]  # 2,000 of Chinese
TURNS = 20  # of a dialogue: ten rows
WORDS = (
    "灯塔",
    "旧地图",
    "莓果茶",
    "书阁",
    "码头",
    "贝币",
    "木匠",
    "石桥",
    "钟楼",
    "雨伞",
    "风筝",
    "信使",
    "稻田",
    "铜铃",
    "渡船",
    "水井",
)


def write_role(folder: Path, rows: int) -> None:
    """A role with 100 memories, and dialogues that make that many rows."""
    rng = random.Random(0)

    def line(length: int) -> str:
        return "".join(rng.choice(WORDS) for _ in range(length)) + "。"

    (folder / "texts").mkdir(parents=True)
    (folder / "dialogues").mkdir()
    (folder / "system_prompt.txt").write_text("你在扮演小棹，渡口的船工。", encoding="utf-8")
    (folder / "aliases.txt").write_text("小棹\n", encoding="utf-8")
    for number in range(100):
        (folder / f"texts/{number:03}.txt").write_text(line(20), encoding="utf-8")
    with (folder / "dialogues/invented.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(rows * 2 // TURNS):
            turns = [{"role": ("阿禾", "小棹")[i % 2], "text": f"「{line(6)}」"} for i in range(TURNS)]
            file.write(json.dumps({"dialogue": turns, "source": "invented"}, ensure_ascii=False) + "\n")


def private_kib(root: int) -> tuple[int, int]:
    """RssAnon and Pss_Anon of a process and all that it started."""
    children, anon = defaultdict(list), {}
    for status in Path("/proc").glob("[0-9]*/status"):
        fields = kib_fields(status)
        if "PPid" in fields:
            pid = int(status.parent.name)
            children[fields["PPid"]].append(pid)
            anon[pid] = fields.get("RssAnon", 0)
    rss, pss, left = 0, 0, [root]
    while left:
        pid = left.pop()
        rss += anon.get(pid, 0)
        pss += kib_fields(Path(f"/proc/{pid}/smaps_rollup")).get("Pss_Anon", 0)
        left += children[pid]
    return rss, pss


def kib_fields(file: Path) -> dict[str, int]:
    """The numbers of a file of /proc; none if the process has ended."""
    try:
        rows = [row.split() for row in file.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def measure(command: list[str]) -> tuple[float, float, float, float]:
    """Seconds that a command takes, CPU seconds of all its processes, and peaks in MiB: RssAnon, Pss_Anon."""
    start, cpu_start, rss, pss = time.perf_counter(), cpu_seconds_of_children(), 0, 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(process.communicate)  # or the pipe fills up
        while process.poll() is None:
            now = private_kib(process.pid)
            rss, pss = max(rss, now[0]), max(pss, now[1])
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}\n{told.result()[1][-2000:]}")
    return time.perf_counter() - start, cpu_seconds_of_children() - cpu_start, rss / 1024, pss / 1024


def cpu_seconds_of_children() -> float:
    """Of those that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


PREPARE = """
import sys
from kyon_pl.data import DialogueDataModule
from kyon_pl.demo import ASSETS
DialogueDataModule(sys.argv[1], tokenizer=str(ASSETS / "base"), cache_dir=sys.argv[2]).prepare_data()
"""


def steps_of(folder: Path, rows: int) -> dict[str, list[str]]:
    """The commands to measure, on a role of so many rows that is made in the folder."""
    write_role(folder / "zhao", rows)
    output = str(folder / "rows.parquet")
    build = ["-m", "kyon_pl", "build-data", "--characters", str(folder / "zhao"), "--output", output]
    return {"build-data": build, "prepare_data": ["-c", PREPARE, output, str(folder / "cache")]}


def ranking_seconds(retrieval: str, queries: int, memories: int = 1000) -> float:
    """How long it takes to rank the memories for so many questions, a thousand at a time as `build-data` does."""
    rng = np.random.default_rng(0)
    letters = random.Random(0)
    vectors = rng.standard_normal((memories, DIMENSIONS), dtype=np.float32)
    texts = tuple("".join(letters.choices(LETTERS, k=400)) for _ in range(memories))
    retriever = Retriever(Role("zhao", "", texts, {DIMENSIONS: vectors}), retrieval)
    stored = rng.standard_normal((1000, DIMENSIONS)).tolist()
    rows = [{"query": "".join(letters.choices(LETTERS, k=30)), "embedding": vector} for vector in stored]
    retriever.rank(rows[:1], 16)  # the memories are indexed
    start = time.perf_counter()
    for _ in range(queries // len(rows)):
        retriever.rank(rows, 16)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=100_000)
    arguments = parser.parse_args()
    columns = ("rows", "step", "seconds", "CPU seconds", "peak RssAnon, MiB", "peak Pss_Anon, MiB", "Parquet, MiB")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            for step, command in steps_of(Path(name), rows).items():
                seconds, cpu, rss, pss = measure([sys.executable, *command])
                size = (Path(name) / "rows.parquet").stat().st_size / 2**20
                print(
                    f"| {rows:,} | {step} | {seconds:,.0f} | {cpu:,.0f} | {rss:,.0f} | {pss:,.0f} | {size:,.0f} |",
                    flush=True,
                )
    print(f"\n| ranking 1,000 memories for {arguments.queries:,} questions | seconds |\n|---|---|")
    for retrieval in ("stored", "lexical"):
        print(f"| {retrieval} | {ranking_seconds(retrieval, arguments.queries):,.1f} |", flush=True)


if __name__ == "__main__":
    main()
