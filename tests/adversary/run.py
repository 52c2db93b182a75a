"""Tries to break every command, and counts what comes of it.

`python tests/adversary/run.py` tries all attacks, in two processes; `--draw 800 --seed 5` as many by chance,
`--only TEXT` those whose name has the text. It prints each fault, then a table with the attempts, statuses and faults
of each kind; `--counts` writes the table to `counts.md`, which is committed. Status 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", type=int, help="number of attacks, by chance; without: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="attacks whose name has this text")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--counts", action="store_true", help="write the table to counts.md")
    parser.add_argument("--log", type=Path, help="a file for the attempts, one JSON object a line")
    parser.add_argument("--show", action="store_true", help="print what the commands said")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)  # number, of how many, folder
    return parser


def main() -> int:
    """Start the workers, and count what they report."""
    chosen = options().parse_args()
    if chosen.worker:
        work(chosen)
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kyon_pl-adversary-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        workers = [start_worker(chosen, number, folder) for number in range(chosen.processes)]
        records = list(collect(chosen, workers))
    table = as_table(records, chosen, time.monotonic() - started)
    print(table)
    if chosen.counts:
        (HERE / "counts.md").write_text(table, encoding="utf-8")
    return int(any(record["faults"] for record in records) or any(worker.returncode for worker in workers))


def start_worker(chosen: argparse.Namespace, number: int, folder: str) -> subprocess.Popen[str]:
    """A process that tries every n-th attack; its HF_HOME is in the folder of the attempts."""
    place = Path(folder) / str(number)
    (place / "attempt").mkdir(parents=True)
    words = [word for word in sys.argv[1:] if word not in ("--counts",)]
    environment = os.environ | {
        "HF_HOME": str(place / "attempt/home/hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "MPLCONFIGDIR": str(place / "mpl"),
    }
    command = [sys.executable, __file__, *words, "--worker", str(number), str(chosen.processes), str(place)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def collect(chosen: argparse.Namespace, workers: list[subprocess.Popen[str]]) -> Iterator[dict[str, Any]]:
    """The records of all attempts, as they come; faults are printed."""
    from concurrent.futures import ThreadPoolExecutor
    from queue import SimpleQueue

    queue: SimpleQueue[str | None] = SimpleQueue()

    def read(worker: subprocess.Popen[str]) -> None:
        for line in worker.stdout or []:
            queue.put(line)
        worker.wait()
        queue.put(None)

    with ThreadPoolExecutor(len(workers)) as pool:
        for worker in workers:
            pool.submit(read, worker)
        going = len(workers)
        while going:
            line = queue.get()
            if line is None:
                going -= 1
                continue
            record: dict[str, Any] = json.loads(line)
            if chosen.log:
                with chosen.log.open("a", encoding="utf-8") as file:
                    file.write(line)
            if record["faults"] or chosen.show:
                print(f"{', '.join(record['faults']) or 'fine'}: {record['name']}\n    {record['where']}", flush=True)
            yield record


def work(chosen: argparse.Namespace) -> None:
    """Try this worker's share of the attacks, and print a record of each."""
    from forks import attempt, drawn, import_everything, run_healthy, warm_up
    from formats import damaged, wrong_values
    from judge import faults, where
    from keys import wrong_settings
    from processes import odd_names, odd_processes
    from world import World

    number, count, place = int(chosen.worker[0]), int(chosen.worker[1]), Path(chosen.worker[2])
    records = sys.stdout
    import_everything()
    world = World(place / "world", run_healthy)
    world.make()
    warm_up(world.healthy(), place / "world")
    attacks = [
        attack
        for generator in (damaged, wrong_values, wrong_settings, odd_processes, odd_names)
        for attack in generator(world)
        if chosen.only in attack.name
    ]
    for attack in drawn(attacks, chosen.draw or len(attacks), chosen.seed)[number::count]:
        folder = place / "attempt"
        remove(folder)
        folder.mkdir()
        ended, words = attempt(attack, folder)
        found = faults(attack, ended)
        record = ended.as_dict() | {"kind": attack.kind, "command": attack.command, "name": attack.name, "words": words}
        record |= {"faults": found, "where": ""}
        if found or chosen.show:
            record["where"] = where(ended)
            record["said"] = (ended.errors + ended.output).decode("utf-8", "replace")[-4000:]
        print(json.dumps(record), file=records, flush=True)


def remove(folder: Path) -> None:
    """Whatever is in it, and whoever's it is."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def as_table(records: list[dict[str, Any]], chosen: argparse.Namespace, seconds: float) -> str:
    """Attempts, statuses and faults of each kind, as Markdown."""
    kinds = ("traceback", "hang", "status", "unsaid", "unnamed", "control", "changed")
    drawn = f"drawn with seed {chosen.seed}" if chosen.draw else "all of them"
    lines = [
        f"{len(records):,} attempts ({drawn}), written by `python tests/adversary/run.py`.",
        "",
        f"| kind | attempts | status 0 | status 2 | other | {' | '.join(kinds)} |",
        "|---|" + "---:|" * (4 + len(kinds)),
    ]
    names = sorted({record["kind"] for record in records})
    for name in [*names, "all"]:
        of_kind = [record for record in records if name in ("all", record["kind"])]
        statuses = Counter(record["status"] for record in of_kind)
        other = len(of_kind) - statuses[0] - statuses[2]
        faults = Counter(fault for record in of_kind for fault in record["faults"])
        cells = [len(of_kind), statuses[0], statuses[2], other, *(faults[kind] for kind in kinds)]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    print(f"{seconds:.0f} s, {sum(record['seconds'] for record in records) / max(len(records), 1):.2f} s an attempt")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
