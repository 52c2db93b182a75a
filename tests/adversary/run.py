"""Tries to break every command, and counts what comes of it.

`python tests/adversary/run.py` tries all attacks, some 90,000, in two processes; `--draw 800 --seed 5` as many by
chance, `--only TEXT` those whose name has the text. It prints each fault, then a table with the attempts, statuses and
faults of each kind; `--counts` writes the table to `counts.md`, which is committed. Status 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from attack import Attack

HERE = Path(__file__).parent
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
FEW = 40  # attacks that are made sooner than a process is warm


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", type=int, help="number of attacks, by chance; without: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="attacks whose name has this text")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--counts", action="store_true", help="write the table to counts.md")
    parser.add_argument("--log", type=Path, help="a file for the attempts, one JSON object a line")
    parser.add_argument("--show", action="store_true", help="print what the commands said")
    return parser


def main() -> int:
    """Make the attacks, share them among forks of this process, and count what comes of them."""
    chosen = options().parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kyon_pl-adversary-", ignore_cleanup_errors=True) as folder:
        attacks = prepare(chosen, Path(folder))
        print(f"{len(attacks):,} attacks after {time.monotonic() - started:.0f} s", flush=True)
        count = chosen.processes
        readers = [start_worker(attacks[number::count], Path(folder) / str(number)) for number in range(count)]
        records = list(collect(chosen, readers))
    table = as_table(records, chosen)
    print(table)
    for record in records:  # once more, behind the table: a log of CI keeps its end
        if record["faults"]:
            print_fault(record)
    print(f"{time.monotonic() - started:.0f} s")
    if chosen.counts:
        (HERE / "counts.md").write_text(table, encoding="utf-8")
    return int(len(records) < len(attacks) or any(record["faults"] for record in records))


def prepare(chosen: argparse.Namespace, folder: Path) -> list[Attack]:
    """Import everything, make the healthy inputs, and choose the attacks."""
    os.environ.update(ENVIRONMENT | {"HF_HOME": str(folder / "hf"), "MPLCONFIGDIR": str(folder / "mpl")})
    from draw import all_attacks, drawn
    from forks import import_everything, run_healthy, warm_up
    from world import World

    import_everything()
    world = World(folder / "world", run_healthy)
    world.make()
    if chosen.draw is None or chosen.draw > FEW:
        warm_up(world.healthy(), folder / "world")
    attacks = list(islice(drawn(all_attacks(world, chosen.only), chosen.seed), chosen.draw))
    gc.collect()
    gc.freeze()  # forks then leave these pages alone
    return attacks


def start_worker(attacks: list[Attack], place: Path) -> TextIO:
    """A fork that tries attacks one after the other; what it returns gives a record of each, in JSON."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        return open(reader, encoding="utf-8")  # noqa: PTH123 (a descriptor)
    status = 1
    try:
        os.close(reader)
        with open(writer, "w", encoding="utf-8") as records:  # noqa: PTH123 (a descriptor)
            work(attacks, place, records)
        status = 0
    finally:
        os._exit(status)


def collect(chosen: argparse.Namespace, readers: list[TextIO]) -> Iterator[dict[str, Any]]:
    """The records of all attempts, as they come; faults are printed."""
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            selector.register(reader, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                reader = cast("TextIO", key.fileobj)
                if not (line := reader.readline()):
                    selector.unregister(reader)
                    continue
                record: dict[str, Any] = json.loads(line)
                if chosen.log:
                    with chosen.log.open("a", encoding="utf-8") as file:
                        file.write(line)
                if record["faults"] or chosen.show:
                    print_fault(record)
                yield record


def print_fault(record: dict[str, Any]) -> None:
    print(f"{', '.join(record['faults']) or 'fine'}: {record['name']}\n    {record['where']}", flush=True)


def work(attacks: list[Attack], place: Path, records: TextIO) -> None:
    """Try attacks in `attempt`, and write a record of each."""
    import datasets
    from forks import attempt
    from judge import faults, where

    folder = place / "attempt"
    datasets.config.HF_DATASETS_CACHE = folder / "home/datasets"  # so that no attempt meets the cache of another one
    for attack in attacks:
        remove(folder)
        folder.mkdir(parents=True)
        ended, words = attempt(attack, folder)
        found = faults(attack, ended)
        record = ended.as_dict() | {"kind": attack.kind, "command": attack.command, "name": attack.name, "words": words}
        said = (ended.errors + ended.output).decode("utf-8", "replace")[-4000:]
        record |= {"faults": found, "where": where(ended), "said": said if found else ""}
        print(json.dumps(record), file=records, flush=True)


def remove(folder: Path) -> None:
    """Whatever is in it, and whoever's it is."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def as_table(records: list[dict[str, Any]], chosen: argparse.Namespace) -> str:
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
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
