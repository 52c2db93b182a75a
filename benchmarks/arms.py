"""Training speed and memory, side by side on one device: this package, a bare loop, HF Trainer, the original.

    python benchmarks/arms.py --table results.md                             everything, about a minute an arm
    python benchmarks/arms.py --arms bare,bf16-none,fp8-none,lora:14         some; arm_names.py says how they are called
    python benchmarks/arms.py --device cpu --tiny --arms bare,bf16-none      a small shape, seconds an arm

ChatGLM2-6B's shape with random weights, rows of the lengths in token_lengths.json. Each arm has a process of its own.
Results are appended to a table as they come.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from arm_names import DEFAULT_ARMS, TINY_SHAPE, Arm, parse_arm
from rows import RowShape, write_rows

WARMUP, MEASURED = 5, 20
SHOWN_LINES = 12  # of what an arm said that failed


def main() -> None:
    """Measure the arms that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(DEFAULT_ARMS), help="names, with commas between them")
    parser.add_argument("--table", type=Path, default=Path("arms.md"), help="Markdown file to append to")
    parser.add_argument("--steps", type=int, default=MEASURED, help="optimizer steps that are measured")
    parser.add_argument("--warmup", type=int, default=WARMUP, help="optimizer steps before them")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape in float32")
    parser.add_argument("--one_process", action="store_true", help="for a CPU: a GPU may still hold the arm before")
    parser.add_argument("--limit_s", type=float, default=float("inf"), help="of the whole command: kill what runs then")
    parser.add_argument("--arm_limit_s", type=float, default=300, help="of one arm")
    parser.add_argument("--logs", type=Path, help="folder to keep what each arm said, and all its numbers")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # what a process of an arm is given
    options = parser.parse_args()
    if options.one:
        task = json.loads(options.one.read_text())
        Path(task["result"]).write_text(json.dumps(measure(task)))
        return
    try:
        arms = [parse_arm(word, options.tiny) for word in options.arms.split(",")]
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as folder:
        run(arms, options, Path(folder))


def run(arms: list[Arm], options: argparse.Namespace, folder: Path) -> None:
    """One arm after the other."""
    from arm_table import Table

    ends_s, table = time.monotonic() + options.limit_s, Table(options.table)
    if options.tiny:
        (folder / "config.json").write_text(json.dumps(TINY_SHAPE))
    machine = perform({"name": "machine"}, options, folder, ends_s)
    if "failed" in machine:
        sys.exit(f"no matrix product: {machine['failed']}")
    table.begin(shlex.join(["python", *sys.argv]), machine, options.warmup, options.steps)
    results = {}
    for arm in arms:
        if time.monotonic() > ends_s:
            table.fail(arm.name, "not run: no time left")
            continue
        task, shape = prepare(arm, options, folder)
        found = perform(task, options, folder, ends_s)
        if "failed" in found:
            table.fail(arm.name, found["failed"])
            continue
        results[arm.name] = found
        mfu = found["tokens_per_s"] * flop_per_token(shape, options) / machine["flop_per_s"]
        table.add(arm.name, found, mfu, executed_flop_per_s(found, shape, options) / machine["flop_per_s"])
    others = [arm.name for arm in arms if arm.name in results and arm.kind != "ours"]
    table.end(results, others or list(results)[:1])


def prepare(arm: Arm, options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], RowShape]:
    """What a process of an arm is given, and the rows, written."""
    warmup, steps = options.warmup, options.warmup + options.steps
    if arm.grouped:  # whole rounds from long rows to short ones
        from arm_hf import grouped_steps

        warmup = grouped_steps(arm.rows(steps, options.tiny).rows, arm.rows_per_batch)
        steps = 2 * warmup
    shape = arm.rows(options.warmup + options.steps, options.tiny)
    file = folder / f"rows-{shape.rows}-{shape.exact_tokens}-{shape.tree}.jsonl"
    if not file.exists():
        write_rows(file, shape)
    task = {"name": arm.name, "rows": str(file), "steps": steps, "warmup": warmup}
    return task, shape


def flop_per_token(shape: RowShape, options: argparse.Namespace) -> float:
    """FLOP of training LoRA on a token of these rows; nothing is recomputed."""
    from kyon_pl.chatglm2 import ChatGLM2Config
    from kyon_pl.training.throughput import flop_per_token as flop

    config = ChatGLM2Config(**TINY_SHAPE) if options.tiny else ChatGLM2Config()
    return flop(config, shape.seen_tokens, recomputed=0)


def executed_flop_per_s(found: dict[str, Any], shape: RowShape, options: argparse.Namespace) -> float:
    """FLOP that our model computes in a second; 0 for other models, whose tokens were not counted that way."""
    from kyon_pl.chatglm2 import ChatGLM2Config
    from kyon_pl.training.throughput import executed_flop

    if not found["computed_per_s"]:
        return 0.0
    config = ChatGLM2Config(**TINY_SHAPE) if options.tiny else ChatGLM2Config()
    counted = {"tokens": found["computed_per_s"], "labels": found["labels_per_s"]}
    return executed_flop(config, **counted, row_tokens=shape.seen_tokens)


def perform(task: dict[str, Any], options: argparse.Namespace, folder: Path, ends_s: float) -> dict[str, Any]:
    """Do a task in a process of its own, or in this one; what failed is said under `failed`."""
    own = folder / f"arm-{time.monotonic_ns()}"
    own.mkdir()
    task |= {"device": options.device, "folder": str(own), "result": str(own / "result.json")}
    task |= {"tiny": str(folder / "config.json") if options.tiny else None, "started_s": time.time()}
    if options.one_process and task["name"] != "machine":
        return measure(task)
    (own / "task.json").write_text(json.dumps(task))
    log = (options.logs or own) / f"{task['name'].replace('/', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        words = [sys.executable, __file__, "--one", str(own / "task.json")]
        child = subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        limit_s = min(options.arm_limit_s, ends_s - time.monotonic())
        try:
            status = child.wait(max(1.0, limit_s))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # it and its loader's workers
            child.wait()
            return {"failed": f"not done after {limit_s:.0f} s"}
    if status == 0:
        found: dict[str, Any] = json.loads(Path(task["result"]).read_text())
        log.with_suffix(".json").write_text(json.dumps(found))
        return found
    lines = [line for line in log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    print("\n".join(f"  {task['name']}: {line[:300]}" for line in lines[-SHOWN_LINES:]), flush=True)
    return {"failed": f"status {status}: {lines[-1][:120] if lines else 'no word'}"}


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Measure one arm, or the machine, in this process."""
    import torch

    if task["device"] == "cpu":
        torch.set_num_threads(1)
    if task["name"] == "machine":
        return measure_machine(torch.device(task["device"]))
    from arm_clock import Clock
    from arm_hf import train_hf, train_original
    from arm_ours import bare, fit

    arm = parse_arm(task["name"], tiny=task["tiny"] is not None)
    if task["device"] == "cuda":
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        total_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(arm.cap_gib / total_gib if arm.cap_gib else 1.0)
    clock = Clock(torch.device(task["device"]), task["started_s"], task["warmup"])
    train = {"ours": fit, "bare": bare, "hf": train_hf, "original": train_original}[arm.kind]
    tiny = Path(task["tiny"]) if task["tiny"] else None
    return train(arm, Path(task["rows"]), Path(task["folder"]), task["steps"], clock, tiny)


def measure_machine(device: Any) -> dict[str, Any]:
    """What it is called, and the rate of a matrix product: the best of three, after a first try."""
    import torch
    from arm_table import versions

    cuda = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if cuda else (512, torch.float32)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    seconds = []
    for repeats in (3, 20, 20, 20):
        if cuda:
            torch.cuda.synchronize()
        started_s = time.perf_counter() if cuda else time.process_time()
        for _ in range(repeats):
            a @ b
        if cuda:
            torch.cuda.synchronize()
        seconds.append(((time.perf_counter() if cuda else time.process_time()) - started_s) / repeats)
    return {
        "device": torch.cuda.get_device_name() if cuda else "one core of a CPU",
        "versions": versions(device),
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "flop_per_s": 2 * size**3 / min(seconds[1:]),
    }


if __name__ == "__main__":
    main()
