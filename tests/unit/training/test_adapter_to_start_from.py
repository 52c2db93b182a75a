"""`model.adapter`: what a real run leaves is found as its best and its last, and gone on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rigged import fit, rigged_module, write_inputs
from safetensors.torch import load_file

from kyon_pl.errors import CheckpointError, SettingError
from kyon_pl.runs.adapters import find_adapter
from kyon_pl.runs.checkpoint_io import AdapterCheckpointIO
from kyon_pl.training.callbacks import RunRecord, StepCheckpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps; the loss falls, so that by `max` the first validation is the best, which is after step 2."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    module = rigged_module(folder)
    callbacks = [
        ModelCheckpoint(
            folder / "run/checkpoints", "best-{step}", monitor="val/loss", mode="max", enable_version_counter=False
        ),
        StepCheckpoint(every_n_steps=1, keep=9),
        RunRecord(lambda: {"seed": "1"}),
    ]
    writer = AdapterCheckpointIO(module.write_adapter, "model: {}\n")
    fit(folder, module, callbacks, plugins=[writer], enable_checkpointing=True)
    return folder / "run"


def test_best_and_last(run: Path) -> None:
    assert find_adapter(str(run)).name == "best-step=2"
    assert find_adapter(str(run), "last").name == "step=4"


def test_a_run_is_gone_on_with_from_its_best(run: Path) -> None:
    module = rigged_module(run.parent, adapter=str(run))
    fit(run.parent, module, [], max_steps=0)
    saved = load_file(run / "checkpoints/best-step=2/adapter_model.safetensors")
    named = {name.removeprefix("model."): p for name, p in module.named_parameters() if p.requires_grad}
    trained = {name.replace(".default", ""): parameter for name, parameter in named.items()}
    assert trained.keys() == saved.keys()
    assert all(torch.equal(trained[name], tensor) for name, tensor in saved.items())


def test_what_is_wrong_is_said_before_the_base_is_there(run: Path, tmp_path: Path) -> None:
    module = rigged_module(run.parent)
    module.frozen_base = replace(module.frozen_base, name=str(tmp_path / "no base"))
    module.initial_adapter.lora.init_lora_weights = "pissa"
    with pytest.raises(SettingError, match="pissa"):
        module.prepare_data()
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    module = rigged_module(run.parent, adapter=str(tmp_path))
    module.frozen_base = replace(module.frozen_base, name=str(tmp_path / "no base"))
    with pytest.raises(CheckpointError, match="IA3"):
        module.prepare_data()
