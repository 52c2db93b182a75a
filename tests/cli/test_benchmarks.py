"""benchmarks/ on a CPU with tiny shapes, so that a change of the package is met here and not on a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def tables(script: str, *words: object) -> list[list[str]]:
    """Run a script; the cells of its table's lines."""
    table = Path(str(words[words.index("--table") + 1]))
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = table.read_text(encoding="utf-8").splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]


@pytest.mark.slow
def test_batch_and_stream(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--tiny", "--parts", "batch,stream", "--context", 40, "--repeats", 1]
    words += ["--new_tokens", 8, "--prompts", 8, "--singles", 2, "--table", tmp_path / "table.md"]
    found = {row[1]: row[2] for row in tables("replies.py", tmp_path / "folder", *words) if len(row) == 3}
    assert found["prompt"] == "40 tokens, 8 new ones"
    assert float(found["times as many"]) > 1
    for name in ("chat, base and adapter", "chat, base alone", "GlmForCausalLM.generate"):
        assert float(found[name].split("ms, ")[1].split(" ")[0]) > 0


@pytest.mark.slow
def test_what_fp8_costs(tmp_path: Path) -> None:
    """On a CPU bf16 stands in fp8's place, and an adapter costs nothing to be moved."""
    words = ["--tiny", "--pretrain_s", 1, "--steps", 2, "--validate_every", 1, "--seeds", 2, "--at_once", 2]
    rows = tables("fp8_quality.py", tmp_path / "folder", *words, "--table", tmp_path / "table.md")
    final = {row[0]: row[1:] for row in rows if row[0].startswith(("seed", "**mean"))}
    assert final.keys() == {"seed 1", "seed 2", "**mean**"}
    assert final["seed 1"][0] != final["seed 2"][0]
    for bf16, fp8, _, moved, _ in final.values():
        assert bf16 == fp8 == moved
    curve = {row[0]: row[3] for row in rows if row[0].isdecimal()}
    assert curve == dict.fromkeys("012", "+0.00%")


@pytest.mark.slow
def test_several_devices(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--tiny", "--rows", 300, "--steps", 15, "--table", tmp_path / "table.md"]
    rows = tables("devices.py", "--runs", "1x2", *words)
    assert [row[0] for row in rows] == ["run", "1x2"]
    rates = [float(rate.replace(",", "")) for rate in rows[1][1].split()]
    assert len(rates) == 2
    assert min(rates) > 0
    assert rows[1][7] == "0.0e+00 over 3 windows"
