"""benchmarks/replies.py on a CPU with a tiny shape."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/replies.py"


@pytest.mark.slow
def test_batch_and_stream(tmp_path: Path) -> None:
    file = tmp_path / "table.md"
    words = ["--device", "cpu", "--tiny", "--parts", "batch,stream", "--table", file, "--context", 40, "--repeats", 1]
    words += ["--new_tokens", 8, "--prompts", 8, "--singles", 2]
    command = [sys.executable, SCRIPT, tmp_path / "folder", *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = [line.split(" | ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    found = {what: value.removesuffix(" |") for _, what, value in (row for row in cells if len(row) == 3)}
    assert found["prompt"] == "40 tokens, 8 new ones"
    assert float(found["times as many"]) > 1
    for name in ("chat, base and adapter", "chat, base alone", "GlmForCausalLM.generate"):
        assert float(found[name].split("ms, ")[1].split(" ")[0]) > 0
