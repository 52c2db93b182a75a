"""What an earlier commit wrote is resumed, validated, asked, merged and converted by the current code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kyon_pl.cli import main
from kyon_pl.runs.integrity import size_and_sha256

HERE = Path(__file__).parent
COMMITS = sorted(path.name for path in HERE.iterdir() if (path / "expected.json").exists())
ADAPTER = "adapter_model.safetensors"


class Legacy:
    """Copies of one commit's artefacts, in the current folder.

    Attributes:
        expected: what that commit printed and wrote.
        same_machine: bytes can be compared: rounding is that of the processor and of the version of torch.
    """

    def __init__(self, commit: str) -> None:
        for path in (HERE / commit).iterdir():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, path.name)
        Path("runs").rename("lightning_logs")
        self.expected: dict[str, Any] = json.loads(Path("expected.json").read_text(encoding="utf-8"))
        cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        self.same_machine = (cpu.partition(": ")[2], torch.__version__) == (
            self.expected["cpu"],
            self.expected["torch"],
        )

    def check_bytes(self, file: Path, sha256: str) -> None:
        if self.same_machine:
            assert size_and_sha256(file)["sha256"] == sha256


@pytest.fixture(params=COMMITS)
def legacy(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Legacy:
    monkeypatch.chdir(tmp_path)
    return Legacy(request.param)


def test_there_are_some() -> None:
    assert "37c419d" in COMMITS


def test_a_killed_run_resumes_to_the_same_bytes(legacy: Legacy, capfd: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", "run.yaml"])
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]  # it is the same run
    assert "step=27.ckpt" in capfd.readouterr().err
    resumed = Path("lightning_logs/version_0/checkpoints/step=60") / ADAPTER
    legacy.check_bytes(resumed, legacy.expected["resumed_adapter_sha256"])
    tensors, finished = load_file(resumed), load_file(Path("finished") / ADAPTER)
    assert tensors.keys() == finished.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, finished[name], rtol=1e-3, atol=1e-5)


def test_a_checkpoint_and_its_saved_config_validate(legacy: Legacy, capsys: pytest.CaptureFixture[str]) -> None:
    """The config names classes of ours, of torch and of Lightning by their paths."""
    run = "lightning_logs/version_0"
    words = ["--ckpt_path", f"{run}/checkpoints/best-step=20.ckpt", "--held_out", "null"]
    main(["validate", "--config", f"{run}/config.yaml", *words])
    loss = float(capsys.readouterr().out.split("val/loss")[1].split()[1])
    assert loss == pytest.approx(legacy.expected["validation_loss_at_20"], rel=1e-4)


def test_a_finished_adapter_answers(legacy: Legacy, capsys: pytest.CaptureFixture[str]) -> None:
    main(["chat", "--adapter", "finished", "-p", legacy.expected["prompt"], "--max_new_tokens", "48", "--json", "true"])
    assert json.loads(capsys.readouterr().out)["reply"] == legacy.expected["reply"]


@pytest.mark.parametrize("form", ["chatglm", "glm"])
def test_a_finished_adapter_is_merged(legacy: Legacy, form: str) -> None:
    main(["merge", "--adapter", "finished", "--format", form, "--output", "merged"])
    legacy.check_bytes(Path("merged/model.safetensors"), legacy.expected["merged_sha256"][form])


def test_a_finished_adapter_is_converted(legacy: Legacy) -> None:
    main(["convert-adapter", "--adapter", "finished", "--to", "glm", "--output", "converted"])
    legacy.check_bytes(Path("converted") / ADAPTER, legacy.expected["converted_sha256"])


def test_the_saved_config_is_accepted(legacy: Legacy, capsys: pytest.CaptureFixture[str]) -> None:
    main(["preview", "--config", "lightning_logs/version_0/config.yaml", "--rows", "1"])
    assert "1 of 800 rows shown" in capsys.readouterr().out


def test_an_altered_checkpoint_is_refused(legacy: Legacy, capfd: pytest.CaptureFixture[str]) -> None:
    """The control: the newest checkpoint is skipped by name, and the one before it is used."""
    file = Path("lightning_logs/version_0/checkpoints/step=27") / ADAPTER
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    main(["chat", "--which", "last", "-p", legacy.expected["prompt"], "--max_new_tokens", "1"])
    said = capfd.readouterr().err
    assert "step=27.ckpt is skipped" in said
    assert "best-step=20" in said
