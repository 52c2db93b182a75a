"""The literal reference command under caps of GPU memory: what it chooses, how fast that is, and its losses.

    python benchmarks/auto_choice.py                                 about four minutes on one H100 or H200
    python benchmarks/auto_choice.py --arms 22,22+data.tokens_per_batch=4096     a choice beside a neighbour of it

An arm is a cap of the allocator in GiB or `none`, and options of `kyon-pl fit` behind a +; `old` has the fixed numbers
that configs/lora.yaml had before. The command is `kyon-pl fit --config configs/lora.yaml --model.base random` with rows
of the lengths in token_lengths.json; replies are left out, because a random base has no tokenizer. Each arm has a
process of its own, and ends after a few optimizer steps.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS = 6000  # so many that compiling pays, as in the reference run
OLD = {
    "data.tokens_per_batch": "2048",
    "trainer.accumulate_grad_batches": "16",
    "model.checkpointing": "full",
    "model.compile": "false",
}
SHOWN = re.compile(r"\(auto\)|^trainer.precision|^largest batch|not enough|memory|^kyon-pl fit: (?!kyon_pl)")


def main() -> None:
    """Run the arms, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default="none,46,22,14,old")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps, the first of which does not count")
    parser.add_argument("--limit_s", type=float, default=230, help="no arm is started later, and each is ended then")
    parser.add_argument("--tiny", type=Path, help="config.json of a small shape, for a CPU")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run(json.loads(options.one))
        return
    ends_s = time.monotonic() + options.limit_s
    from rows import RowShape, write_rows

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = RowShape(200, 128, shrink=16, vocabulary=1024) if options.tiny else RowShape(ROWS)
        write_rows(folder / "rows.jsonl", shape)
        found = {arm: measure(arm, options, folder, ends_s) for arm in options.arms.split(",")}
    report(found)


def measure(arm: str, options: argparse.Namespace, folder: Path, ends_s: float) -> dict[str, Any] | None:
    """What an arm chose and how fast it was; None if it failed or had no time."""
    cap, *changes = arm.split("+")
    settings = (OLD if cap == "old" else {}) | dict(change.split("=", 1) for change in changes)
    task = {"cap_gib": float(cap) if cap not in ("none", "old") else None, "settings": settings, "steps": options.steps}
    task |= {"folder": str(folder), "result": str(folder / f"{arm}.json"), "tiny": str(options.tiny or "")}
    left_s = ends_s - time.monotonic()
    print(f"== {arm}", flush=True)
    if left_s < 0:
        print("   no time left", flush=True)
        return None
    started_s = time.monotonic()
    words = [sys.executable, __file__, "--one", json.dumps(task)]
    try:
        child = subprocess.run(words, capture_output=True, text=True, timeout=left_s)
    except subprocess.TimeoutExpired:
        print("   not done in time", flush=True)
        return None
    lines = [line for line in child.stderr.replace("\r", "\n").splitlines() if SHOWN.search(line)]
    print("\n".join(f"   {line[:200]}" for line in lines), flush=True)
    if child.returncode or not Path(task["result"]).is_file():
        print(f"   status {child.returncode}: {child.stderr[-1500:]}", flush=True)
        return None
    found: dict[str, Any] = json.loads(Path(task["result"]).read_text())
    line = f"   {found['tokens_per_s']:,.0f} tokens/s, peak {found['allocated_gib']:.1f} GiB allocated and "
    print(f"{line}{found['reserved_gib']:.1f} reserved, {time.monotonic() - started_s:.0f} s in all", flush=True)
    return found


def run(task: dict[str, Any]) -> None:
    """One arm, in this process."""
    import torch
    from auto_clock import StopAfter

    from kyon_pl.cli import main as kyon_pl

    if torch.cuda.is_available() and task["cap_gib"]:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(task["cap_gib"] * 2**30 / total)
    StopAfter.steps, StopAfter.result = task["steps"], Path(task["result"])
    folder = Path(task["folder"])
    settings = {
        "model.base": "random",
        "data.source": folder / "rows.jsonl",
        "data.cache_dir": folder / "encoded",
        "trainer.default_root_dir": Path(task["result"]).with_suffix(""),
        "held_out": "null",
        **task["settings"],
    }
    if task["tiny"]:
        settings |= {"model.random_config": task["tiny"], "trainer.accelerator": "cpu", "trainer.precision": "32-true"}
        settings |= {"data.max_tokens": 128, "data.tokens_per_step": 1024, "data.workers": 0, "data.processes": 1}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    words += ["--allow_code", "auto_clock", "--trainer.callbacks+", "auto_clock.StopAfter"]
    kyon_pl(["fit", "--config", str(HERE.parent / "configs/lora.yaml"), *words])


def report(found: dict[str, dict[str, Any] | None]) -> None:
    """A table, and how far the losses of the same optimizer steps are apart."""
    done = {arm: result for arm, result in found.items() if result}
    print("\n| arm | tokens/s, median of steps | peak allocated GiB | losses of the steps |\n|---|---|---|---|")
    for arm, result in done.items():
        losses = " ".join(f"{loss:.4f}" for loss in result["losses"])
        print(f"| `{arm}` | {result['tokens_per_s']:,.0f} | {result['allocated_gib']:.1f} | {losses} |")
    by_step = list(zip(*(result["losses"] for arm, result in done.items() if arm != "old"), strict=False))
    apart = [(max(losses) - min(losses)) / statistics.mean(losses) for losses in by_step]
    if apart:
        print(f"\nlosses of the same steps, `old` left out: {max(apart):.2e} apart, relative, at most")


if __name__ == "__main__":
    main()
