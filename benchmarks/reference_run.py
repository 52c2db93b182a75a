"""The reference run's speed and memory on this GPU: `kyon-pl fit --config configs/lora.yaml` with a random 6B base.

    python benchmarks/reference_run.py --gib 14 --steps 30 -- --trainer.precision bf16-mixed

Prints one row of a table: tokens/s and rows/s as medians over the logged steps after warm-up, peak memory,
non-finite losses.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import tempfile
from pathlib import Path

import torch
from rows import write_rows

from kyon_pl.cli import main

ROOT = Path(__file__).parents[1]


def run(gib: float | None, steps: int, options: list[str]) -> None:
    """Train and print the row."""
    with tempfile.TemporaryDirectory() as folder:
        rows_file = Path(folder) / "rows.jsonl"
        write_rows(rows_file, rows=max(1500, steps * 40))
        if gib:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total)
        words = ["fit", "--config", str(ROOT / "configs/lora.yaml"), "--model.base", "random"]
        words += [
            "--data.source",
            str(rows_file),
            "--trainer.max_steps",
            str(steps),
            "--trainer.log_every_n_steps",
            "1",
        ]
        words += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", folder]
        words += ["--trainer.limit_val_batches", "4", *options]
        main(words)
        metrics = next(Path(folder).rglob("metrics.csv"))
        with metrics.open(encoding="utf-8") as stream:
            logged = [row for row in csv.DictReader(stream) if row.get("train/loss")]
    losses = [float(row["train/loss"]) for row in logged]
    warm = logged[len(logged) // 3 :]
    tokens_per_s = statistics.median(float(row["train/tokens_per_s"]) for row in warm)
    rows_per_s = statistics.median(float(row["train/rows_per_s"]) for row in warm)
    print(f"RESULT {torch.cuda.get_device_name()} torch {torch.__version__} cap {gib} GiB options {' '.join(options)}")
    print(f"RESULT optimizer steps {len(logged)}, non-finite losses {sum(not math.isfinite(loss) for loss in losses)}")
    print(f"RESULT loss {losses[0]:.4f} -> {losses[-1]:.4f}, tokens/s {tokens_per_s:,.0f}, rows/s {rows_per_s:.1f}")
    print(f"RESULT peak allocated {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    print(f"RESULT peak reserved {torch.cuda.max_memory_reserved() / 2**30:.2f} GiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, help="cap of the allocator, GiB")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps")
    parser.add_argument("options", nargs="*", help="further options of kyon-pl fit, after --")
    arguments = parser.parse_args()
    run(arguments.gib, arguments.steps, arguments.options)
