"""benchmarks/arms.py on a CPU: the table that it writes, and ratios that must hold on any machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/arms.py"


def arms(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_tiny_arms(tmp_path: Path) -> None:
    """Rates are of the processor's own time, so that a busy machine has the same ratios."""
    file = tmp_path / "table.md"
    words = ["--device", "cpu", "--tiny", "--one_process", "--steps", 8, "--warmup", 2, "--table", file]
    done = arms("--arms", "bare,bf16-none,bf16-full", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    text = file.read_text(encoding="utf-8")
    assert "512^3 matrix product" in text
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    heading, _, *rows = lines
    found = {row[0]: dict(zip(heading[1:], row[1:], strict=True)) for row in rows}
    assert list(found) == ["bare", "bf16-none", "bf16-full"]
    rates = {arm: float(cells["tokens/s, all steps"].replace(",", "")) for arm, cells in found.items()}
    assert 1.1 < rates["bf16-none"] / rates["bf16-full"] < 2.0  # 6 N against 4 N: 1.5 at most, and what is around it
    assert 0.6 < rates["bf16-none"] / rates["bare"] < 1.4
    assert all(0 < float(cells["executed %"]) < float(cells["MFU %"]) < 100 for cells in found.values())
    assert found["bf16-none"]["loss"].split()[0] == found["bare"]["loss"].split()[0]  # the same model and first batch
    assert f"over that of bare: bf16-none {float(text.rpartition('bf16-none ')[2].partition(',')[0]):.3f}" in text


@pytest.mark.parametrize("word", ["bf16", "bf16-all", "hf-16-full", "lora:"])
def test_unknown_arm(word: str) -> None:
    done = arms("--arms", f"bare,{word}")
    assert done.returncode == 2
    assert f"there is no arm '{word}'" in done.stderr
