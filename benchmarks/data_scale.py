"""Time and private memory of `build-data` and of `prepare_data`, by number of rows; nothing but invented text.

    python benchmarks/data_scale.py --rows 100000 1000000

Memory is RssAnon, summed over the process and all its children and sampled five times a second: pages of mapped cache
files are not in it, because the system takes them back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

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


def private_kib(root: int) -> int:
    """RssAnon of a process and all that it started."""
    children, anon = defaultdict(list), {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(row.split(":", 1) for row in status.read_text().splitlines())
        except OSError:  # it has ended
            continue
        pid = int(status.parent.name)
        children[int(fields["PPid"])].append(pid)
        anon[pid] = int(fields.get("RssAnon", "0 kB").split()[0])
    total, left = 0, [root]
    while left:
        pid = left.pop()
        total += anon.get(pid, 0)
        left += children[pid]
    return total


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds that a command takes, and its peak of private memory in MiB."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, private_kib(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return time.perf_counter() - start, peak / 1024


PREPARE = """
import sys
from kyon_pl.data import DialogueDataModule
from kyon_pl.demo import ASSETS
DialogueDataModule(sys.argv[1], tokenizer=str(ASSETS / "base"), cache_dir=sys.argv[2]).prepare_data()
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    print("| rows | step | seconds | peak MiB | file |\n|---|---|---|---|---|")
    for rows in parser.parse_args().rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_role(folder / "zhao", rows)
            output = folder / "rows.parquet"
            build = ["-m", "kyon_pl", "build-data", "--characters", str(folder / "zhao"), "--output", str(output)]
            steps = {"build-data": build, "prepare_data": ["-c", PREPARE, str(output), str(folder / "cache")]}
            for step, arguments in steps.items():
                seconds, mib = measure([sys.executable, *arguments])
                size = f"{output.stat().st_size / 2**20:,.0f} MiB Parquet"
                print(f"| {rows:,} | {step} | {seconds:,.0f} | {mib:,.0f} | {size} |", flush=True)


if __name__ == "__main__":
    main()
