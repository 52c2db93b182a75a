"""Two processes on a CPU: the same files as one would write, and one process that writes and speaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from limits import HANG_S

from kyon_pl.doctor.cuts import AUTO_SETTINGS
from kyon_pl.runs.curves import read_curves

ROOT = Path(__file__).parents[2]
TWO = ["--trainer.devices", "2"]


def fit(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kyon_pl", "fit", "--config", str(ROOT / "configs/demo.yaml")]
    return subprocess.run([*command, *words], cwd=folder, capture_output=True, text=True, timeout=HANG_S)


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
    check(fit(tmp_path, *TWO, *words), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["full", "none"])
def test_two_processes_run_the_demo_to_its_end(tmp_path: Path, checkpointing: str) -> None:
    check(fit(tmp_path, *TWO, "--model.checkpointing", checkpointing), tmp_path)


@pytest.mark.slow
def test_two_devices_make_the_optimizer_steps_of_one(tmp_path: Path) -> None:
    """With nothing more than `--trainer.devices 2`: the same losses over 50 steps, to 1e-3 (the sums of two ranks)."""
    auto = [word for name in AUTO_SETTINGS for word in (f"--{name}", "auto")]
    words = ["--data.tokens_per_step", "2048", *auto, "--trainer.max_steps", "50", "--trainer.log_every_n_steps", "1"]
    found = []
    for devices in ("1", "2"):
        (tmp_path / devices).mkdir()
        run = fit(tmp_path / devices, "--held_out", "null", "--trainer.devices", devices, *words)
        check(run, tmp_path / devices)
        assert f"trainer.accumulate_grad_batches: {4 // int(devices)} (auto)" in run.stderr
        found.append(read_curves(tmp_path / devices / "lightning_logs/version_0"))
    one, two = (dict(curves["train/loss"]) for curves in found)
    assert [*one] == [*two] == [*range(1, 51)]
    assert two == pytest.approx(one, rel=1e-3)
    assert min(one.values()) < 0.2 * one[1]  # it learned something
