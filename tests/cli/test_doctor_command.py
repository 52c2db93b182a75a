"""`kyon-pl doctor`: its text, exit status and JSON, and that it downloads nothing."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kyon_pl.cli import main
from kyon_pl.data import DialogueDataModule

ROOT = Path(__file__).parents[2]
DEMO = ["--config", str(ROOT / "configs/demo.yaml")]
LORA = ["--config", str(ROOT / "configs/lora.yaml")]


def doctor(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and output."""
    capsys.readouterr()
    try:
        main(["doctor", *words])
    except SystemExit as stopped:
        return int(str(stopped.code)), capsys.readouterr().out
    return 0, capsys.readouterr().out


def doctor_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    status, text = doctor([*words, "--json"], capsys)
    report = json.loads(text)
    assert report["works"] == (status == 0)
    states = [finding["state"] for part in report["findings"].values() for finding in part]
    assert ("missing" in states) == (not report["works"])
    return status, report


def test_demo_works_and_its_rows_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, report = doctor_json(DEMO, capsys)
    assert status == 0
    needs, work = report["config"], report["config"]["work"]
    rows = DialogueDataModule(source="demo", validation_source="demo", tokenizer="demo", max_tokens=512, processes=1)
    rows.tokens_per_batch = 1024
    rows.setup("fit")
    assert rows.train_sampler is not None
    assert work["counted"] == "rows"
    assert work["steps"] == 3 * math.ceil(len(rows.train_sampler) / 2)
    assert work["validation"]["slots"] == rows.rows["validation"].tokens.max()
    assert (needs["device"], needs["device_is_here"], needs["download_bytes"]) == ("cpu", True, 0)
    assert 0 < needs["training_seconds"] < 3600
    assert needs["memory"]["frozen_weights_bytes"] == 4 * needs["parameters"]
    assert needs["peak_bytes"] < sum(needs["memory"].values())
    assert list(tmp_path.iterdir()) == []


def test_reference_run_on_a_cpu_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """All sections, aligned, and the one missing item with its fix."""
    status, text = doctor([*LORA, "--trainer.accelerator", "auto"], capsys)
    assert status == 1
    lines = text.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == ["this machine", "this config", "verdict"]
    assert max(map(len, lines)) <= 110
    flat = " ".join(text.split())
    assert "12.5 GB to download" in flat
    assert "✗ device model.base: this base has 6.2 billion parameters" in flat
    assert "configs/demo.yaml" in flat
    assert "peak 12.8 GiB" in flat
    assert lines[-1] == "  ✗  this run cannot work here; missing: device"


@pytest.mark.parametrize(
    ("gpu_gib", "options", "status", "missing"),
    [
        ("24", [], 0, []),
        ("12", [], 1, ["GPU memory"]),
        ("24", ["--data.tokens_per_batch", "8192", "--model.checkpointing", "none"], 1, ["GPU memory"]),
        ("48", ["--data.tokens_per_batch", "8192", "--model.checkpointing", "none"], 0, []),
        ("24", ["--trainer.precision", "16-true"], 1, ["config"]),
        ("24", ["--data.source", "none.jsonl"], 1, ["rows"]),
        ("24", ["--model.base", "./none"], 1, ["base"]),
        ("24", ["--trainer.devices", "x"], 1, ["config"]),
    ],
)
def test_planned_for_another_machine(
    gpu_gib: str, options: list[str], status: int, missing: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found, report = doctor_json([*LORA, "--gpu_gib", gpu_gib, *options], capsys)
    assert (found, report["missing"]) == (status, missing)


def test_original_settings_need_a_large_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Batches of 32 rows of up to 4,237 tokens."""
    seed = ["--config", str(ROOT / "configs/seed.yaml"), "--gpu_gib"]
    assert doctor([*seed, "40"], capsys)[0] == 1
    status, report = doctor_json([*seed, "80"], capsys)
    assert status == 0
    assert report["config"]["work"]["training"] == {
        "rows": 32,
        "slots": 4237,
        "trained_tokens": 32 * 120,
        "keys": None,
    }
    assert report["config"]["memory"]["validation_bytes"] == 0


def test_advice_fits_and_a_larger_pack_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    whole = [*LORA, "--gpu_gib", "32", "--data.tokens_per_step", "null", "--trainer.accumulate_grad_batches", "1"]
    whole += ["--model.compile", "true"]
    _, report = doctor_json([*whole, "--data.tokens_per_batch", "2048"], capsys)
    for name, checkpointing in (("with", "full"), ("without", "none")):
        most = report["advice"][f"tokens_per_batch_{name}_checkpointing"]
        assert most > 2048
        for tokens, status in ((most, 0), (most + 512, 1)):
            options = ["--data.tokens_per_batch", str(tokens), "--model.checkpointing", checkpointing]
            assert doctor([*whole, *options], capsys)[0] == status


def test_without_a_config_only_the_machine_is_examined(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = doctor([], capsys)
    assert status == 0
    assert text.splitlines()[-1] == "  ok nothing is missing"
    assert "kyon-pl doctor --config configs/lora.yaml" in text


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ([*LORA, "--gpu_gib", "-1"], ["--gpu_gib", "-1"]),
        ([*DEMO, "--data.sorce", "x"], ["data.sorce", "no such setting", "data.source"]),
        (["--config", "none.yaml"], ["none.yaml", "there is no file"]),
    ],
)
def test_invalid_settings(words: list[str], texts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", *words])
    assert stopped.value.code == 2
    out, paragraph = capsys.readouterr()
    assert out == ""
    assert len(paragraph.strip().splitlines()) == 1
    assert all(text in paragraph for text in texts)


def test_no_request_to_the_hub(tmp_path: Path) -> None:
    """A local server accepts no connection from doctor, but one from the first step of a run."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(0.1)
        address = f"http://127.0.0.1:{hub.getsockname()[1]}"
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
        words = [sys.executable, "-m", "kyon_pl", "doctor", *LORA, "--gpu_gib", "24"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        assert "12.5 GB to download" in " ".join(done.stdout.split())
        with pytest.raises(TimeoutError):
            hub.accept()
        hub.settimeout(60)
        code = "from kyon_pl.demo import fetch_base_config; fetch_base_config('THUDM/chatglm2-6b', None)"
        with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL) as fetching:
            connection, _ = hub.accept()
            connection.close()
            fetching.kill()


@pytest.mark.parametrize(
    ("option", "file", "content"),
    [
        ("--model.base", "config.json", "7"),
        ("--model.base", "config.json", '{"model_type": "chatglm", "num_layers": []}'),
        ("--model.adapter", "adapter_config.json", "7"),
        ("--model.adapter", "adapter_config.json", '{"peft_type": "LORA", "r": 0, "lora_alpha": 1}'),
    ],
)
def test_damaged_inputs_are_named(
    option: str, file: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    status, said = doctor([*DEMO, option, str(tmp_path)], capsys)
    assert status in (1, 2)
    assert file in said.replace("\n", "")
