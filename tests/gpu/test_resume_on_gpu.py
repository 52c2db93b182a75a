"""Killed on a GPU in 16-mixed, after the scaler has skipped steps: the same bytes, with deterministic kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "faults"))

from compare import load, run_differences  # noqa: E402
from runs import Way, only_run, write_inputs  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

KILL = "late on_train_batch_end 15"  # inside an accumulation window of the second epoch


def fit(folder: Path, kill_at: str = "") -> int:
    """The same command, always."""
    environment = os.environ | {"KILL_AT": kill_at, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    environment["PYTHONPATH"] = f"{HERE.parent / 'faults'}:{environment.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "kyon_pl", "fit", "--config", "run.yaml", "--allow_code", "kill_at"]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, start_new_session=True)
    print(run.stderr[-1500:])
    return run.returncode


def write_gpu_inputs(folder: Path, batching: str, deterministic: bool) -> None:
    """As on a CPU, with a scale so large that the first steps overflow and are skipped."""
    way = Way(1, "16-mixed", batching)
    write_inputs(folder, way)
    config = way.config()
    scaler = {"class_path": "torch.amp.GradScaler", "init_args": {"device": "cuda", "init_scale": 2.0**26}}
    precision = {"precision": "16-mixed", "device": "cuda", "scaler": scaler}
    plugin = {"class_path": "lightning.pytorch.plugins.precision.MixedPrecision", "init_args": precision}
    config["trainer"] |= {"accelerator": "cuda", "precision": None, "plugins": [plugin], "deterministic": deterministic}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("batching", ["packed", "shared"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_kill_and_resume(tmp_path: Path, batching: str, deterministic: bool) -> None:
    """Without deterministic kernels the difference is measured and printed, not promised."""
    for name in ("undisturbed", "killed"):
        write_gpu_inputs(tmp_path / name, batching, deterministic)
    assert fit(tmp_path / "undisturbed") == 0
    assert fit(tmp_path / "killed", KILL) == -9
    assert fit(tmp_path / "killed") == 0
    runs = [only_run(tmp_path / name) for name in ("undisturbed", "killed")]
    checkpoints = [load(max((run / "checkpoints").glob("step=*.ckpt"), key=os.path.getmtime)) for run in runs]
    scale = checkpoints[0]["MixedPrecision"]["scale"]
    states = [checkpoint["state_dict"] for checkpoint in checkpoints]
    distance = max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0])
    print(f"{batching}, deterministic {deterministic}: final scale {scale}, weights {distance:.3g} apart at most")
    assert scale < 2.0**26  # steps were skipped
    if deterministic:
        assert run_differences(*runs) == []
