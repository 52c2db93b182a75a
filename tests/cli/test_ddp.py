"""Two processes on a CPU: the same files as one would write, and one process that writes and speaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from limits import HANG_S

ROOT = Path(__file__).parents[2]


def fit(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kyon_pl", "fit", "--config", str(ROOT / "configs/demo.yaml")]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG_S)


def check(run: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stderr.count("last adapter:") == 1
    assert run.stderr.count("LoRA:") == 1
    assert [path.name for path in (folder / "lightning_logs").iterdir()] == ["version_0"]
    assert len(list((folder / "lightning_logs").rglob("events.out.*"))) == 1
    assert len(list((folder / "lightning_logs").rglob("step=*/adapter_model.safetensors"))) >= 1


def test_two_processes(tmp_path: Path) -> None:
    """A few steps, accumulated, with gradient checkpointing; an odd number of batches, so that one rank has a dummy."""
    words = ["--trainer.limit_train_batches", "5", "--model.checkpointing", "full"]
    check(fit(tmp_path, *words), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["full", "none"])
def test_two_processes_run_the_demo_to_its_end(tmp_path: Path, checkpointing: str) -> None:
    check(fit(tmp_path, "--model.checkpointing", checkpointing), tmp_path)
