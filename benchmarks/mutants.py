"""Mutation testing of one room: how many small changes of its code do the room's unit tests notice?

    pip install cosmic-ray
    python benchmarks/mutants.py batches --count 40 --table mutants.md

cosmic-ray makes the mutants; this takes a random sample of them, changes one at a time in a copy of the repository, and
runs the room's tests on each. Mutants of type annotations are left out, because annotations are not evaluated. A
mutant that survives either shows a missing test or changes nothing that can be observed; the table lists them all.
"""

from __future__ import annotations

import argparse
import ast
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COPIED = ("kyon_pl", "tests", "configs", "benchmarks", "docs", "examples", "pyproject.toml")
DATA = "tests/unit/data/test_"
ROOMS = {
    "encoding": ("kyon_pl/data/encoding", [f"{DATA}{name}.py" for name in ("encode", "tree", "cache", "workers")]),
    "batches": (
        "kyon_pl/data/batches",
        [*(f"{DATA}{name}.py" for name in ("batching", "collate", "workers")), "tests/invariant/test_shared.py"],
    ),
    "runs": ("kyon_pl/runs", ["tests/unit/runs", "tests/unit/training/test_elastic_steps.py"]),
    "training": ("kyon_pl/training", ["tests/unit/training"]),
}
CONFIG = """[cosmic-ray]
module-path = "{module}"
timeout = 900.0
excluded-modules = []
test-command = "{python} -m pytest -x -p no:cacheprovider {tests}"
[cosmic-ray.distributor]
name = "local"
"""
Span = tuple[tuple[int, int], tuple[int, int]]


def main() -> None:
    """Try a sample of mutants of a room."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("room", choices=sorted(ROOMS))
    parser.add_argument("--count", type=int, default=40, help="mutants to try")
    parser.add_argument("--seed", type=int, default=2023)
    parser.add_argument("--table", type=Path, default=Path("mutants.md"), help="Markdown file to append to")
    options = parser.parse_args()
    module, tests = ROOMS[options.room]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        environment = f"env PYTHONPATH={copy} OMP_NUM_THREADS=1 {sys.executable}"
        config = CONFIG.format(module=module, python=environment, tests=" ".join(tests))
        (copy / "mutants.toml").write_text(config, encoding="utf-8")
        cosmic_ray(copy, "init", "mutants.toml", "mutants.sqlite")
        cosmic_ray(copy, "baseline", "mutants.toml")  # the tests pass without a mutant
        with closing(sqlite3.connect(copy / "mutants.sqlite")) as session:
            total = sample(session, copy, options.count, options.seed)
        cosmic_ray(copy, "exec", "mutants.toml", "mutants.sqlite")
        with closing(sqlite3.connect(copy / "mutants.sqlite")) as session:
            section = table(session, copy, options.room, total, options.seed)
    with options.table.open("a", encoding="utf-8") as stream:
        stream.write(section)
    print(section)


def cosmic_ray(folder: Path, *words: str) -> None:
    """Run cosmic-ray in a folder."""
    subprocess.run(["cosmic-ray", *words], cwd=folder, check=True)


def sample(session: sqlite3.Connection, copy: Path, count: int, seed: int) -> int:
    """Keep `count` mutants outside annotations; their whole number."""
    found = session.execute("select job_id, module_path, start_pos_row, start_pos_col from mutation_specs").fetchall()
    spans = {file: [*annotations(copy / file)] for file in {row[1] for row in found}}
    evaluated = sorted(
        job
        for job, file, line, column in found
        if not any(first <= (line, column) <= last for first, last in spans[file])
    )
    chosen = random.Random(seed).sample(evaluated, min(count, len(evaluated)))
    for name in ("mutation_specs", "work_items"):
        session.execute(f"delete from {name} where job_id not in ({','.join('?' * len(chosen))})", chosen)
    session.commit()
    return len(evaluated)


def annotations(file: Path) -> Iterator[Span]:
    """First and last place, line and column, of each annotation."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        noted: list[Any] = []
        if isinstance(node, (ast.AnnAssign, ast.arg)):
            noted.append(node.annotation)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            noted.append(node.returns)
        for part in noted:
            if part is not None:
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def table(session: sqlite3.Connection, copy: Path, room: str, total: int, seed: int) -> str:
    """What was tried, and each survivor."""
    rows = session.execute(
        "select test_outcome, module_path, start_pos_row, operator_name, diff "
        "from work_results join mutation_specs using (job_id) order by module_path, start_pos_row"
    ).fetchall()
    survivors = [row for row in rows if row[0] == "SURVIVED"]
    lines = [
        f"\n## {room}: {len(rows) - len(survivors)} of {len(rows)} mutants noticed",
        f"\nA sample of {total:,} (seed {seed}).\n",
        *(["| place | before | after |", "|---|---|---|"] if survivors else []),
    ]
    for _, file, line, _, diff in survivors:
        changed = [part for part in diff.splitlines() if part[:1] in "+-" and part[:3] not in ("+++", "---")]
        before, after = (" ".join(p[1:].strip() for p in changed if p[0] == sign) for sign in "-+")
        place = Path(file).relative_to(copy) if Path(file).is_absolute() else file
        lines.append(f"| {place}:{line} | {code(before)} | {code(after)} |")
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    """Text as code in a cell."""
    return "`" + text.replace("|", "\\|") + "`" if text else "(removed)"


if __name__ == "__main__":
    main()
