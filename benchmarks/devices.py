"""`kyon-pl fit --config configs/lora.yaml --trainer.devices N`: speed, start, memory, loss, what killed ranks leave.

    python benchmarks/devices.py --runs 1,2,4 --table devices.md             the same optimizer steps on 1, 2 and 4 GPUs
    python benchmarks/devices.py --runs 1+trainer.precision=bf16-mixed,4+trainer.precision=bf16-mixed --steps 50
    python benchmarks/devices.py --killed 4,2,1                              one rank is killed; others go on with less
    python benchmarks/devices.py --runs 1,2 --killed 2,1 --device cpu --tiny

A run is DEVICES[xTIMES][+key=value ...], with further options of `kyon-pl fit`; a value has no comma and no plus. `1x4`
is four runs at the same time, each on a GPU of its own: GPUs of one machine differ by some percent. Each run is the
command as people type it, with a random base of the 6B's shape and rows of the published lengths. Tokens/s and losses
are those that the run logs, of all ranks together. With `--killed`, the last rank of the first run gets SIGKILL, that
of each that follows SIGTERM, after ten further steps; the same command then goes on with the next number of devices.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from arm_names import CONFIGS, TINY_SHAPE, TINY_SHRINK
from arm_table import versions
from lightning.pytorch import Callback, LightningModule, Trainer
from rows import RowShape, write_rows

from kyon_pl.runs.curves import read_curves

WINDOW_STEPS = 5  # a logged value is the mean of these
WARM_WINDOWS = 2  # are not counted: layers are compiled
BETWEEN_KILLS = 10  # optimizer steps
ENDS_WITHIN_S = 120  # all ranks, after one has been killed
GIVEN = "DEVICES_WATCH"  # the variable with what `Watch` is given
SAVES_OFTEN = """
trainer:
  callbacks:
    - class_path: kyon_pl.training.callbacks.StepCheckpoint
      init_args: {every_n_steps: 5}
"""


class Watch(Callback):
    """Writes what a rank saw, and ends the run; `auto` chooses for a whole run, which a limit of steps would shorten.

    What it is given stands in the environment: a run with other arguments is another run, which is not resumed.
    """

    def __init__(self) -> None:
        given = json.loads(os.environ[GIVEN])
        self.folder, self.steps, self.started_s = Path(given["folder"]), given["steps"], given["started_s"]
        self.first_step_s, self.step = 0.0, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the end of the first optimizer step, and wait for the last."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        if not self.first_step_s:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.first_step_s = time.time() - self.started_s
        self._write(trainer)
        trainer.should_stop = trainer.global_step >= self.steps

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the memory."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        cuda = trainer.strategy.root_device.type == "cuda"
        found = {
            "pid": os.getpid(),
            "step": self.step,
            "first_step_s": self.first_step_s,
            "device_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
            "host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "settings": f"{trainer.accumulate_grad_batches} batches a step, {type(trainer.strategy).__name__}",
        }
        part = self.folder / f"{trainer.global_rank}.part"
        part.write_text(json.dumps(found))
        part.rename(self.folder / f"{trainer.global_rank}.json")  # whole, for whom waits for it


@dataclass(frozen=True)
class Command:
    """A run that was started.

    Attributes:
        devices: how many.
        root: its `trainer.default_root_dir`.
        watched: files of `Watch`.
        log: what it said.
        process: of the first rank.
    """

    devices: int
    root: Path
    watched: Path
    log: Path
    process: subprocess.Popen[bytes]

    def ranks(self) -> list[dict[str, Any]]:
        """What each rank saw so far."""
        return [json.loads(file.read_text()) for file in sorted(self.watched.glob("*.json"))]

    def windows(self) -> list[dict[str, float]]:
        """What all runs of its folder have logged for each window of optimizer steps."""
        found: dict[int, dict[str, float]] = {}
        for version in sorted(self.root.glob("lightning_logs/version_*"), key=lambda folder: folder.stat().st_mtime):
            curves = read_curves(version)
            for name in ("train/loss", "train/tokens_per_s"):
                for step, value in curves.get(name, []):
                    found.setdefault(step, {"step": step})[name] = value
        return [found[step] for step in sorted(found)]

    def said(self) -> list[str]:
        """The lines of its log."""
        return self.log.read_text(errors="replace").replace("\r", "\n").splitlines()


def start(options: argparse.Namespace, word: str, root: Path, rows: Path, steps: int, first_device: int = 0) -> Command:
    """Start `kyon-pl fit`."""
    devices, *settings = word.split("+")
    root.parent.mkdir(exist_ok=True)
    watched = Path(tempfile.mkdtemp(dir=root.parent))
    words: dict[str, object] = {
        "model.base": "random",
        "data.source": rows,
        "data.cache_dir": rows.with_name("encoded"),
        "trainer.default_root_dir": root,
        "trainer.devices": devices,
        "trainer.max_epochs": 500,
        "trainer.log_every_n_steps": WINDOW_STEPS,
        "trainer.limit_val_batches": 0,
        "trainer.num_sanity_val_steps": 0,
        "held_out": "null",
    }
    if options.tiny:
        words |= {"model.random_config": rows.with_name("config.json"), "data.max_tokens": 128, "data.processes": 1}
        words |= {"data.tokens_per_step": 2048, "data.tokens_per_batch": 512, "trainer.precision": "32-true"}
        words |= {"trainer.accelerator": "cpu", "data.workers": 0}
    given = dict(setting.split("=", 1) for setting in settings)
    configs = [CONFIGS / "lora.yaml", *given.pop("config", "").split(":")]
    command = [sys.executable, "-m", "kyon_pl", "fit"]
    command += [x for file in configs if str(file) for x in ("--config", str(file))]
    command += [x for key, value in (words | given).items() for x in (f"--{key}", str(value))]
    command += ["--allow_code", "devices", "--trainer.callbacks+", "devices.Watch"]
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(":")]
    given_to_watch = json.dumps({"folder": str(watched), "steps": steps, "started_s": time.time()})
    environment = os.environ | {"PYTHONPATH": ":".join(path), GIVEN: given_to_watch}
    if options.device == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(
            ","
        )
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible[first_device:])
    log = watched / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    return Command(int(devices), root, watched, log, process)


def main() -> None:
    """Measure the runs, then kill some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="", help="with commas between them; efficiency and losses go by the first")
    parser.add_argument("--killed", default="", help="numbers of devices, with commas between them")
    parser.add_argument("--killed_options", default="", help="+key=value ... of each of them")
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps of a run")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--tree", action="store_true", help="rows begin alike, as the published ones do")
    parser.add_argument("--run_limit_s", type=float, default=300)
    parser.add_argument("--table", type=Path, default=Path("devices.md"), help="Markdown file to append to")
    parser.add_argument("--logs", type=Path, help="folder to keep what each run said, and all its numbers")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape in float32")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    with tempfile.TemporaryDirectory() as folder, options.table.open("a", encoding="utf-8") as table:
        rows = Path(folder) / "rows.jsonl"
        (Path(folder) / "config.json").write_text(json.dumps(TINY_SHAPE))
        tiny = {"shrink": TINY_SHRINK, "vocabulary": TINY_SHAPE["padded_vocab_size"]} if options.tiny else {}
        write_rows(rows, RowShape(options.rows, 2048 // tiny.get("shrink", 1), tree=options.tree, **tiny))  # type: ignore[arg-type]
        say(table, f"\n## {time.strftime('%Y-%m-%d %H:%M')}, {name}\n\n{versions(torch.device(options.device))}\n")
        say(table, f"    {shlex.join(['python', *sys.argv])}\n")
        if options.runs:
            measure(options, options.runs.split(","), Path(folder), rows, table)
        if options.killed:
            kill(options, [int(count) for count in options.killed.split(",")], Path(folder), rows, table)


def say(table: Any, line: str) -> None:
    """Write a line to the table and to the terminal."""
    print(line, flush=True)
    print(line, file=table, flush=True)


def keep_log(options: argparse.Namespace, command: Command, name: str) -> None:
    """Keep what a run said, if that is wanted."""
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)
        file = options.logs / f"{name.replace('/', '_')[:80]}.log"
        file.with_suffix(".json").write_text(json.dumps({"windows": command.windows(), "ranks": command.ranks()}))
        file.write_text("\n".join(command.said()), encoding="utf-8")


def measure(options: argparse.Namespace, runs: list[str], folder: Path, rows: Path, table: Any) -> None:
    """One run after the other."""
    columns = ["run", "tokens/s", "efficiency", "first step after s", "GPU GiB a rank", "host GiB a rank", "losses"]
    columns += ["largest relative difference of losses", ""]
    say(table, f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    first: list[float] = []
    one_device = 0.0
    for number, word in enumerate(runs):
        commands = start_each(options, word, folder / f"run-{number}", rows)
        ends_s = time.monotonic() + options.run_limit_s
        statuses = {wait(command, ends_s) for command in commands}
        status = ", ".join(str(status) for status in sorted(statuses - {0}, key=str))
        for index, command in enumerate(commands):
            keep_log(options, command, f"run-{number}-{word}-{index}")
        command = commands[0]
        windows, ranks = command.windows(), [rank for command in commands for rank in command.ranks()]
        if len(windows) <= WARM_WINDOWS:
            said = " / ".join(line.strip()[:160] for line in command.said()[-3:])
            say(table, f"| {word} | failed: {status}, {said} | | | | | | | |")
            continue
        rates = [median_rate(command) for command in commands]
        losses = [window["train/loss"] for window in windows]
        first, one_device = first or losses, one_device or statistics.fmean(rates) / command.devices
        apart = max(abs(a / b - 1) for a, b in zip(losses, first, strict=False))
        cells = [word, " ".join(f"{rate:,.0f}" for rate in rates)]
        cells += [" ".join(f"{rate / command.devices / one_device:.3f}" for rate in rates)]
        cells += [f"{max(rank['first_step_s'] for rank in ranks):.0f}", spread(ranks, "device_gib")]
        cells += [spread(ranks, "host_gib"), f"{losses[0]:.4f} to {losses[-1]:.4f}"]
        cells += [f"{apart:.1e} over {len(losses)} windows", ranks[0]["settings"] + (f", {status}" if status else "")]
        say(table, f"| {' | '.join(cells)} |")


def start_each(options: argparse.Namespace, word: str, root: Path, rows: Path) -> list[Command]:
    """Start the run of a word, or several at the same time."""
    devices, _, settings = word.partition("+")
    count, _, times = devices.partition("x")
    one = f"{count}+{settings}" if settings else count
    return [
        start(options, one, root / str(index), rows, options.steps, index * int(count))
        for index in range(int(times or 1))
    ]


def wait(command: Command, ends_s: float) -> object:
    """Its status, or that it was not done."""
    try:
        return command.process.wait(max(1.0, ends_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        end_all(command)
        return "not done"


def median_rate(command: Command) -> float:
    """Tokens/s of all ranks, the median of the windows after the warm-up."""
    return statistics.median(window["train/tokens_per_s"] for window in command.windows()[WARM_WINDOWS:])


def spread(ranks: list[dict[str, Any]], key: str) -> str:
    """The smallest and the largest value of the ranks."""
    values = [rank[key] for rank in ranks]
    return f"{min(values):.2f} to {max(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def end_all(command: Command) -> None:
    """Kill what a run has left."""
    if command.process.poll() is not None:
        return
    for child in [*psutil.Process(command.process.pid).children(recursive=True), command.process]:
        child.kill()
    command.process.wait()


def kill(options: argparse.Namespace, counts: list[int], folder: Path, rows: Path, table: Any) -> None:
    """Kill a rank of each run but the last, and go on with other devices."""
    say(table, "\n| devices | signal, to rank | all ended after s | statuses | newest checkpoint | goes on | losses |")
    say(table, "|---|---|---|---|---|---|---|")
    root, saves_often = folder / "killed", folder / "saves_often.yaml"
    saves_often.write_text(SAVES_OFTEN)
    for number, devices in enumerate(counts):
        last = number == len(counts) - 1
        steps = BETWEEN_KILLS * (number + 1) + 2
        word = f"{devices}+config={saves_often}{options.killed_options}"
        command = start(options, word, root, rows, steps if last else 10**6)
        signal_number = None if last else signal.SIGTERM if number else signal.SIGKILL
        ended = disturb(command, signal_number, steps, options.run_limit_s)
        end_all(command)
        keep_log(options, command, f"killed-{number}-{devices}")
        saved = sorted(root.glob("lightning_logs/version_*/checkpoints/step=*"), key=lambda file: file.stat().st_mtime)
        resumed = [line.strip()[:120] for line in command.said() if "resum" in line and "same command" not in line]
        losses = " ".join(f"{window['step']:.0f}: {window['train/loss']:.4f}" for window in command.windows())
        say(table, f"| {devices} | {ended} | {saved[-1].name if saved else 'none'} | {' '.join(resumed)} | {losses} |")


def disturb(command: Command, number: signal.Signals | None, after_step: int, limit_s: float) -> str:
    """Send a signal to the last rank after a step, and wait until all ranks are gone; three cells of the table."""
    ends_s = time.monotonic() + limit_s
    while number and (not command.ranks() or command.ranks()[0]["step"] < after_step):
        if time.monotonic() > ends_s or command.process.poll() is not None:
            return f"{number.name} was not sent: {' / '.join(command.said()[-3:])} | |"
        time.sleep(0.2)
    if not number:
        return f"none | | {command.process.wait(limit_s)}"
    others = [psutil.Process(rank["pid"]) for rank in command.ranks()[1:]]
    others[-1].send_signal(number)
    sent_s = time.monotonic()
    gone, alive = psutil.wait_procs(others, ENDS_WITHIN_S)
    try:
        statuses = [command.process.wait(max(1.0, ENDS_WITHIN_S - (time.monotonic() - sent_s)))]
    except subprocess.TimeoutExpired:
        alive.append(psutil.Process(command.process.pid))
        statuses = []
    took = f"{len(alive)} did not end" if alive else f"{time.monotonic() - sent_s:.0f}"
    statuses += [process.returncode for process in gone]
    return f"{number.name}, {len(others)} | {took} | {' '.join(str(status) for status in statuses)}"


if __name__ == "__main__":
    main()
