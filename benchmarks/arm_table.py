"""The dated table of arms: a section a command, a line an arm, written as soon as it is known."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

COLUMNS = (
    "arm",
    "tokens/s, median",
    "tokens/s, all steps",
    "rows/s",
    "MFU %",
    "executed %",
    "peak allocated GiB",
    "peak reserved GiB",
    "first step after s",
    "waits for data %",
    "recompiled",
    "loss",
)
WORDS = """\
Tokens are real ones: padding is not counted. Medians and rates are over {measured} steps after {warmup} for warming
up; with HF Trainer that groups rows, over one whole round from long rows to short ones after another. MFU: 4 N + 3 x
causal attention forward FLOP a token, N without the embedding, against the matrix product above; what checkpointing
computes again is not counted, and a shared beginning counts in each of its rows. "Executed": the same for what our
model really computes: shared beginnings once, the head and the end of the last layer at labels only. "First step
after" counts from the start of the process to the end of the first optimizer step, with imports, encoding, weights
and compilation; compiled code is kept on disk between the arms of one machine. "Waits for data" is the host's wait
for the next batch, whether or not the device had work left. "Recompiled": graphs compiled after the warm-up.
"""
PACKAGES = ("torch", "transformers", "peft", "lightning")


class Table:
    """Appends to a Markdown file, and prints what it appends.

    Args:
        file: made if it is not there.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)

    def begin(self, command: str, machine: dict[str, Any], warmup: int, measured: int) -> None:
        """Start a section."""
        rate = f"{machine['dtype']} {machine['size']}^3 matrix product: {machine['flop_per_s'] / 1e12:,.3g} TFLOP/s."
        self._write(f"\n## {time.strftime('%Y-%m-%d %H:%M')}, {machine['device']}\n\n{machine['versions']}\n")
        self._write(f"\n    {command}\n\n{rate}\n{WORDS.format(warmup=warmup, measured=measured)}\n")
        self._write("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|\n")

    def add(self, arm: str, found: dict[str, Any], mfu: float, executed: float) -> None:
        """A line of an arm that was measured; `executed` is 0 where it was not counted."""
        first, *_, last = found["losses"]
        bad = f", {found['non_finite']} not finite" if found["non_finite"] else ""
        cells = [
            arm,
            f"{found['tokens_per_s']:,.0f}",
            f"{found['tokens_per_s_overall']:,.0f}",
            f"{found['rows_per_s']:.1f}",
            f"{mfu:.1%}".rstrip("%"),
            f"{executed:.1%}".rstrip("%") if executed else "-",
            *(f"{found[key]:.2f}" if found[key] is not None else "-" for key in ("allocated_gib", "reserved_gib")),
            f"{found['first_step_s']:.0f}",
            f"{found['waited_share'] * 100:.2f}" if found["waited_share"] is not None else "-",
            str(found["recompiled"]),
            f"{first:.3f} to {last:.3f}{bad}",
        ]
        self._line(cells)

    def fail(self, arm: str, reason: str) -> None:
        """A line of an arm that was not."""
        self._line([arm, reason.replace("|", "/"), *[""] * (len(COLUMNS) - 2)])

    def end(self, results: dict[str, dict[str, Any]], beside: list[str]) -> None:
        """Each arm's tokens/s as a multiple of that of some others."""
        for name in beside:
            rates = {arm: found["tokens_per_s"] for arm, found in results.items()}
            told = [f"{arm} {rate / rates[name]:.3f}" for arm, rate in rates.items() if arm != name]
            if told:
                self._write(f"\nMedian tokens/s over that of {name}: {', '.join(told)}.\n")

    def _line(self, cells: list[str]) -> None:
        self._write("| " + " | ".join(cells) + " |\n", "RESULT ")

    def _write(self, text: str, prefix: str = "") -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(text)
        print(prefix + text, end="", flush=True)


def versions(device: torch.device) -> str:
    """Driver and packages, in words."""
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    python = f"Python {platform.python_version()}, {packages}."
    if device.type != "cuda":
        return python
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    return f"Driver {driver}, {python}"
