"""Every YAML under configs/ is parsed, printed, read back and run for a few steps on the demo's base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from kyon_pl.cli import main

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SMALL = [
    *("--model.base", "demo", "--data.source", "demo", "--data.validation_source", "demo", "--data.workers", "0"),
    *(
        "--trainer.accelerator",
        "cpu",
        "--trainer.devices",
        "1",
        "--trainer.precision",
        "32-true",
        "--trainer.enable_progress_bar",
        "false",
    ),
    *("--data.rows_per_batch", "4", "--data.tokens_per_batch", "512", "--data.max_tokens", "512"),
    *("--model.quantization", "null", "--model.compile", "false"),  # for GPUs; test_compile.py compiles on a CPU
    *("--trainer.limit_train_batches", "2", "--trainer.max_epochs", "2", "--trainer.num_sanity_val_steps", "0"),
]
SMALL_REPLIES = ["--held_out.fit_rows", "2", "--held_out.max_new_tokens", "4"]


def words_of(config: Path) -> list[str]:
    """An overlay goes on top of the reference run."""
    below = ["--config", str(ROOT / "configs/lora.yaml")] if config.parent.name == "overlay" else []
    return [*below, "--config", str(config)]


def print_config(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *words, "--print_config"])
    assert not stopped.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = print_config(words_of(config), capsys)
    Path("printed.yaml").write_text(printed, encoding="utf-8")
    assert print_config(["--config", "printed.yaml"], capsys) == printed
    settings = yaml.safe_load(printed)
    validates = settings["trainer"]["limit_val_batches"] != 0
    words = [*SMALL, *(["--trainer.limit_val_batches", "1"] if validates else [])]
    words += SMALL_REPLIES if settings["held_out"] else []
    main(["fit", "--config", "printed.yaml", *words])
    if torch.distributed.is_initialized():  # an overlay for several processes; Lightning ends it with this one
        torch.distributed.destroy_process_group()
    record = json.loads(Path("lightning_logs/version_0/run.json").read_text())
    assert record["finished_at_step"] >= 2
    assert yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())["trainer"]["max_epochs"] == 2
    RUN.append(config)


RUN: list[Path] = []


def test_all_of_them_were_run() -> None:
    """Those of this repository; an overlay more is run without being listed here."""
    assert RUN == CONFIGS
    assert {path.relative_to(ROOT / "configs").as_posix() for path in RUN} >= {
        "demo.yaml",
        "lora.yaml",
        "seed.yaml",
        "overlay/debug.yaml",
        "overlay/early_stopping.yaml",
    }
