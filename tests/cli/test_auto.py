"""`auto` on a CPU: the same adapter as from the same numbers set by hand; a resumed run keeps its numbers."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from kyon_pl.cli import auto, main
from kyon_pl.doctor.choice import Choice
from kyon_pl.doctor.cuts import ACCUMULATE, AUTO_SETTINGS, CHECKPOINTING, COMPILE, TOKENS_PER_BATCH
from kyon_pl.errors import CheckpointError, MachineError
from kyon_pl.runs.fingerprint import differences, keep_accumulation
from kyon_pl.runs.resume import Run, lock_run

ROOT = Path(__file__).parents[2]
FIT = ["fit", "--config", str(ROOT / "configs/demo.yaml"), "--held_out", "null", "--data.tokens_per_step", "2048"]
FIT += ["--trainer.max_steps", "4", "--trainer.num_sanity_val_steps", "0", "--trainer.limit_val_batches", "1"]
FIT += ["--trainer.enable_progress_bar", "false"]
AUTO = [word for name in AUTO_SETTINGS for word in (f"--{name}", "auto")]
OF_A_CPU = {TOKENS_PER_BATCH: 512, ACCUMULATE: 4, CHECKPOINTING: "none", COMPILE: False}
OF_ANOTHER_MACHINE = {TOKENS_PER_BATCH: 1024, ACCUMULATE: 2, CHECKPOINTING: "full", COMPILE: False}
STOPPING = """
import os, signal
from lightning.pytorch import Callback


class Stop(Callback):
    "As a scheduler does it, in the second optimizer step; a second signal would end the process at once."

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if os.environ.get("STOP") and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)
"""
STOP = ["--allow_code", "stopping", "--trainer.callbacks+=stopping.Stop"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stopping.py").write_text(STOPPING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stopping", raising=False)


def by_hand(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value).lower())]


def fit(folder: str, *words: str) -> Path:
    main([*FIT, "--trainer.default_root_dir", folder, *words])
    (run,) = Path(folder, "lightning_logs").iterdir()
    return run


def adapter(run: Path) -> bytes:
    return (run / "checkpoints/step=4/adapter_model.safetensors").read_bytes()


def recorded(run: Path) -> dict[str, Any]:
    config = yaml.safe_load((run / "config.yaml").read_text())
    return {name: config[name.split(".")[0]][name.split(".")[1]] for name in AUTO_SETTINGS}


def fingerprint(run: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((run / "run.json").read_text())["fingerprint"]
    return found


def test_auto_is_the_numbers_that_it_stands_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Byte for byte; and one line for each of them, with its reason."""
    chosen = fit("auto", *AUTO)
    said = capsys.readouterr().err
    assert [said.count(f"{name}: {str(value).lower()} (auto): ") for name, value in OF_A_CPU.items()] == [1] * 4
    assert recorded(chosen) == OF_A_CPU
    set_by_hand = fit("by_hand", *by_hand(OF_A_CPU))
    assert "(auto)" not in capsys.readouterr().err
    assert adapter(chosen) == adapter(set_by_hand)
    assert fingerprint(chosen) == fingerprint(set_by_hand)
    larger = fit("larger", *by_hand(OF_ANOTHER_MACHINE))
    assert differences(fingerprint(chosen), keep_accumulation(fingerprint(chosen), fingerprint(larger))) == []
    assert adapter(chosen) != adapter(larger)  # sums in another order: bytes can differ


def test_a_resumed_run_keeps_its_numbers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The run was started where more memory was free; on this machine other numbers would be chosen now."""
    undisturbed = fit("undisturbed", *by_hand(OF_ANOTHER_MACHINE), *STOP)
    monkeypatch.setenv("STOP", "1")
    with monkeypatch.context() as patch:
        patch.setattr(auto, "choose", lambda *_: Choice(OF_ANOTHER_MACHINE, ()))
        with pytest.raises(SystemExit) as stopped:
            fit("auto", *AUTO, *STOP)
    assert stopped.value.code == 128 + signal.SIGTERM
    monkeypatch.delenv("STOP")
    capsys.readouterr()
    run = fit("auto", *AUTO, *STOP)
    said = capsys.readouterr().err
    assert "auto: as in version_0, a run with the same settings: data.tokens_per_batch 1024, " in said
    assert f"resuming {run}" in said or "resuming auto/lightning_logs/version_0 from step=2" in said
    assert recorded(run) == OF_ANOTHER_MACHINE
    assert adapter(run) == adapter(undisturbed)
    fit("auto", *AUTO, *STOP)
    assert "finished already" in capsys.readouterr().err


def test_numbers_set_by_hand_win(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where they make other steps than `tokens_per_step`, which is said; then they mean what they always meant."""
    numbers = ["--data.tokens_per_batch", "1024", "--trainer.accumulate_grad_batches", "3"]
    run = fit("by_hand", *numbers)
    assert "data.tokens_per_step: 2,048 has no effect, because numbers that were set make steps of 3,072" in (
        capsys.readouterr().err
    )
    without = fit("without", *numbers, "--data.tokens_per_step", "null")
    assert adapter(run) == adapter(without)
    assert fingerprint(run) == fingerprint(without)
    assert os.environ.get(auto.CHOICE)  # for the ranks that a process launches


def test_a_config_that_another_process_is_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command typed twice, half a second apart: the second one read half of the first one's config.yaml."""
    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr("kyon_pl.cli.auto._resumed_run", lambda *_: Run(tmp_path, {}, None))
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        auto.find_recorded(Namespace(), {})
    with lock_run(tmp_path, {}), pytest.raises(MachineError, match=f"process {os.getpid()} on .* is writing it"):
        auto.find_recorded(Namespace(), {})
