"""Times the command line: help and refusals against importing torch, the first word of `chat` against plain PEFT.

    python benchmarks/startup.py [--adapter FOLDER] [--repeats 5]

Every command runs in a process of its own. The commands alternate, so that a busy moment of the machine is shared. The
ratios are of CPU seconds (user and system), which depend less on other processes than wall seconds do. Without
`--adapter`, the demo is trained for two steps first.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from kyon_pl.demo import BASE

KYON_PL = ("-m", "kyon_pl")
IMPORT_TORCH = "import torch"
PLAIN_PEFT = """
import sys, torch, transformers, peft
import kyon_pl.chatglm2
base, adapter = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
tokenizer = transformers.AutoTokenizer.from_pretrained(base)
peft.PeftModel.from_pretrained(model, adapter)
"""
# command -> (its reference, the most of it that it may take)
BOUNDS = {
    "kyon-pl --help": ("import torch", 0.3),
    "kyon-pl fit --help": ("import torch", 0.3),
    "kyon-pl fit --trainer.max_epoch 3": ("import torch", 0.3),
    "kyon-pl chat --help": ("import torch", 0.3),
    "kyon-pl chat -p 你好, first token": ("torch, transformers, peft and the demo", 1.3),
}


def main() -> None:
    """Run every command `--repeats` times and print a table. The exit status is 1 if a ratio is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", type=Path, help="an adapter of the demo's base")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapter = options.adapter or train_adapter(Path(folder))
        measured = measure(commands(adapter.resolve()), options.repeats)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "transformers", "peft"))
    print(f"{date.today()}, Python {platform.python_version()}, {libraries}, {os.cpu_count()} CPUs")
    print(f"medians of {options.repeats}\n")
    print("| command | CPU s | wall s | ratio of CPU s | bound |\n|---|---|---|---|---|")
    too_slow = False
    for name, seconds in measured.items():
        cpu_s, wall_s = (statistics.median(values) for values in zip(*seconds, strict=True))
        ratio = bound = ""
        if name in BOUNDS:
            reference, most = BOUNDS[name]
            share = cpu_s / statistics.median(cpu for cpu, _ in measured[reference])
            ratio, bound = f"{share:.2f} × {reference}", f"{most}"
            too_slow = too_slow or share > most
        print(f"| {name} | {cpu_s:.2f} | {wall_s:.2f} | {ratio} | {bound} |")
    raise SystemExit(too_slow)


def train_adapter(folder: Path) -> Path:
    """An adapter of the demo's base, trained for two steps."""
    words = ["fit", "--config", "demo", "--trainer.max_steps", "2", "--trainer.default_root_dir", str(folder)]
    subprocess.run([sys.executable, *KYON_PL, *words], check=True, capture_output=True)
    return next(folder.rglob("adapter_config.json")).parent


def commands(adapter: Path) -> dict[str, list[str]]:
    """The commands by name, as arguments of Python."""
    return {
        "import torch": ["-c", IMPORT_TORCH],
        "kyon-pl --help": [*KYON_PL, "--help"],
        "kyon-pl fit --help": [*KYON_PL, "fit", "--help"],
        "kyon-pl fit --trainer.max_epoch 3": [*KYON_PL, "fit", "--trainer.max_epoch", "3"],
        "kyon-pl chat --help": [*KYON_PL, "chat", "--help"],
        "torch, transformers, peft and the demo": ["-c", PLAIN_PEFT, str(BASE), str(adapter)],
        "kyon-pl chat -p 你好, first token": [
            *(*KYON_PL, "chat", "-p", "你好", "--adapter", str(adapter), "--max_new_tokens", "1")
        ],
    }


def measure(commands: dict[str, list[str]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of every run of every command; the first round, which fills the disk cache, is left out."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for turn in range(repeats + 1):
        for name, words in commands.items():
            before, started_s = os.times(), time.perf_counter()
            run = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
            wall_s, after = time.perf_counter() - started_s, os.times()
            if run.returncode not in (0, 2):  # 2: the refusal
                raise SystemExit(f"{name}: {run.stderr}")
            cpu_s = sum(after[2:4]) - sum(before[2:4])  # user and system seconds of the processes that have ended
            if turn:
                seconds[name].append((cpu_s, wall_s))
    return seconds


if __name__ == "__main__":
    main()
