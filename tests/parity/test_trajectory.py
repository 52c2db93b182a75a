"""The original's training loop, 24 optimizer steps, through `kyon-pl fit` with its own settings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kyon_pl.cli import main

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden_run(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> tuple[Path, dict]:
    """The run folder, and what the original's loop recorded."""
    folder = tmp_path_factory.mktemp("trajectory")
    tiny = golden / "chatglm2_tiny"
    trajectory = json.loads((tiny / "trajectory.json").read_text())
    base = folder / "base"
    base.mkdir()
    (base / "config.json").write_text((tiny / "config.json").read_text())
    weights = load_file(tiny / "forward.safetensors")
    weights = {name.removeprefix("weight."): value for name, value in weights.items() if name.startswith("weight.")}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    adapter = folder / "adapter"
    adapter.mkdir()
    tensors = load_file(tiny / "lora.safetensors")
    init = {name.removeprefix("init."): value for name, value in tensors.items() if name.startswith("init.")}
    save_file(init, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "target_modules": ["query_key_value"],
    }
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in trajectory["rows"]))
    overrides = {
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.max_epochs": trajectory["epochs"],
        "trainer.log_every_n_steps": 1,
        "trainer.default_root_dir": folder,
        "trainer.logger": "lightning.pytorch.loggers.CSVLogger",
        "trainer.logger.save_dir": folder,
        "trainer.enable_progress_bar": "false",
        "model.base": base,
        "model.adapter": adapter,
        "model.optimizer.lr": trajectory["learning_rate"],
        "data.source": rows,
        "data.rows_per_batch": trajectory["batch_size"],
        "data.shuffle": "false",
        "data.cache_dir": folder / "cache",
    }
    words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    main(["fit", "--config", str(ROOT / "configs/seed.yaml"), *words])
    return folder / "lightning_logs/version_0", trajectory


def logged(run: Path, name: str) -> torch.Tensor:
    with (run / "metrics.csv").open() as stream:
        return torch.tensor([float(row[name]) for row in csv.DictReader(stream) if row[name]], dtype=torch.float64)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_every_step_is_the_original_one(golden_run: tuple[Path, dict], name: str) -> None:
    run, trajectory = golden_run
    golden = torch.tensor(trajectory[name], dtype=torch.float64)
    values = logged(run, f"train/{name}")
    assert values.shape == golden.shape
    assert (values - golden).abs().max() <= TOLERANCE
    # negative control: the right numbers in another order are not the right numbers
    assert (values.roll(1) - golden).abs().max() > TOLERANCE


def test_final_adapter_is_the_original_one(golden_run: tuple[Path, dict], golden: Path) -> None:
    run, trajectory = golden_run
    tensors = load_file(golden / "chatglm2_tiny/lora.safetensors")
    steps = len(trajectory["loss"])
    ours = load_file(run / f"checkpoints/step={steps}/adapter_model.safetensors")
    final = {name.removeprefix("final."): value for name, value in tensors.items() if name.startswith("final.")}
    init = {name.removeprefix("init."): value for name, value in tensors.items() if name.startswith("init.")}
    assert ours.keys() == final.keys()
    assert max((ours[name] - final[name]).abs().max() for name in final) <= TOLERANCE
    # negative control: training moved the adapter by more than the tolerance
    assert max((init[name] - final[name]).abs().max() for name in final) > 10 * TOLERANCE
