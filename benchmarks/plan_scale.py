"""Time, memory and fill of plans with shared beginnings, by number of rows.

    python benchmarks/plan_scale.py --rows 66202 1000000 --clusters 2 4 8 none

Seconds are those that the one thread computed. Rows have the lengths and the tree of row_tree.npz; more rows than it
has are copies of it that share nothing with each other. Each line is measured in a process of its own: the plan of a
first epoch with all that is found once, the plans of further epochs, and how many neighbours of the first epoch are
neighbours in the second. With --find, the tree is found in random ids, which are written to a file first.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rows import FIRST_TEXT_ID, LAST_TEXT_ID, TREE

from kyon_pl.data.batches.plan import BatchPlanner, EpochPlan
from kyon_pl.data.encoding.tree import SharedTree, find_shared

EPOCHS = 3
COLUMNS = (
    "rows",
    "rows a cluster",
    "found in s",
    "first epoch s",
    "next epochs s",
    "tokens a slot",
    "kept pairs",
    "MiB",
)


def read_rows(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Shared, context and target tokens of so many rows, in the order of the tree."""
    tree = np.load(TREE)["shared_context_target"].astype(np.int64)
    copies = np.tile(tree, (-(-count // len(tree)), 1))[:count]
    copies[:: len(tree), 0] = 0
    return copies[:, 0], copies[:, 1], copies[:, 2]


def find_in_ids(shared: NDArray[np.int64], contexts: NDArray[np.int64], targets: NDArray[np.int64]) -> float:
    """Seconds that it takes to find the tree in ids, which stand in a file."""
    rng, lengths = np.random.default_rng(0), contexts + targets
    with tempfile.TemporaryFile() as file:
        row = np.zeros(0, np.int32)
        for common, length in zip(shared.tolist(), lengths.tolist(), strict=True):
            new = rng.integers(FIRST_TEXT_ID, LAST_TEXT_ID, length - common, dtype=np.int32)
            row = np.concatenate([row[:common], new])
            file.write(row.tobytes())
        file.flush()
        ids = np.memmap(file, "<i4", "r")
        started_s = time.process_time()
        find_shared(ids, np.cumsum(lengths) - lengths, contexts)
        return time.process_time() - started_s


def pairs(plan: EpochPlan) -> set[tuple[int, int]]:
    """Rows that share a beginning, each with the row before it."""
    assert plan.shared is not None
    return {(int(plan.rows[i - 1]), int(plan.rows[i])) for i in np.flatnonzero(plan.shared)}


def measure(rows: int, rows_per_cluster: int | None, find: bool) -> dict[str, object]:
    """The cells of a line."""
    shared, contexts, targets = read_rows(rows)
    found_s = find_in_ids(shared, contexts, targets) if find else None
    started_s = time.process_time()
    planner = BatchPlanner(
        row_tokens=contexts + targets,
        row_trained_tokens=targets,
        batching="shared",
        tokens_per_batch=8192,
        tree=SharedTree(np.arange(rows), shared),
        rows_per_cluster=rows_per_cluster,
    )
    plans = [planner.plan_epoch(0)]
    first_s = time.process_time() - started_s
    for epoch in range(1, EPOCHS):
        plans.append(planner.plan_epoch(epoch))
    next_s = (time.process_time() - started_s - first_s) / (EPOCHS - 1)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    first, second = pairs(plans[0]), pairs(plans[1])
    per_slot = float((contexts + targets).sum()) / (planner.batches_per_epoch * planner.tokens_per_batch)
    cells = (
        f"{rows:,}",
        rows_per_cluster or "no limit",
        f"{found_s:.1f}" if found_s is not None else "-",
        f"{first_s:.1f}",
        f"{next_s:.1f}",
        f"{per_slot:.3f}",
        f"{len(first & second) / max(1, len(first)):.0%}",
        f"{peak_mib:,.0f}",
    )
    return dict(zip(COLUMNS, cells, strict=True))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[66_202, 1_000_000])
    parser.add_argument("--clusters", nargs="+", default=["2", "4", "8", "none"], help="rows a cluster; none: no limit")
    parser.add_argument("--find", action="store_true", help="also find the tree in ids")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.one:
        (clusters,) = options.clusters
        print(json.dumps(measure(options.rows[0], None if clusters == "none" else int(clusters), options.find)))
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for rows in options.rows:
        for clusters in options.clusters:
            words = [sys.executable, str(Path(__file__)), "--one", "--rows", str(rows), "--clusters", clusters]
            words += ["--find"] if options.find else []
            found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print("| " + " | ".join(str(found[column]) for column in COLUMNS) + " |", flush=True)


if __name__ == "__main__":
    main()
