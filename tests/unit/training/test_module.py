"""What the LightningModule refuses, and what it promises of memory, devices and the validation loss."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rigged import Rigged, fit, rigged_module, write_inputs

from kyon_pl import ChatGLM2LoRA
from kyon_pl.batch import Batch
from kyon_pl.chatglm2.layers import ChatGLM2Layer
from kyon_pl.errors import SettingError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    return tmp_path


def in_half(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.half()


def test_trained_weights_in_half_precision_never_reach_the_optimizer(folder: Path) -> None:
    """A scaler cannot unscale them: "Attempting to unscale FP16 gradients", after the whole base has loaded."""
    module = rigged_module(folder)
    module.after_configure = in_half
    with pytest.raises(AssertionError):
        fit(folder, module, [])


def test_adapters_are_float32_on_a_half_precision_base(folder: Path) -> None:
    module = rigged_module(folder)
    fit(folder, module, [], scaler=True)
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in module.parameters()}
    assert dtypes == {True: torch.float32, False: torch.float16}


def fused(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


def test_a_fused_optimizer_is_refused_where_lightning_cannot_clip(folder: Path) -> None:
    module = rigged_module(folder)
    module.make_optimizer = fused
    with pytest.raises(SettingError, match=r"init_args\.fused"):
        fit(folder, module, [], scaler=True, gradient_clip_val=1.0)
    for settings in ({"gradient_clip_val": 1.0}, {"scaler": True}):
        module = rigged_module(folder)
        module.make_optimizer = fused
        fit(folder, module, [], **settings)


class KeptForBackward(Rigged):
    """Counts the bytes that the graph of a micro-batch keeps for its backward pass."""

    kept_bytes = 0

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = super().training_step(batch, batch_idx)
        self.kept_bytes = sum(kept.values())
        return loss


def test_checkpointing_keeps_a_fraction_of_the_activations(folder: Path) -> None:
    kept_bytes = {}
    for checkpointing in ("none", 1, "full"):
        module = rigged_module(folder, KeptForBackward, checkpointing=checkpointing)
        fit(folder, module, [], epochs=1)
        kept_bytes[checkpointing] = module.kept_bytes
    assert 0 < kept_bytes["full"] < kept_bytes["none"] / 2, kept_bytes
    assert kept_bytes[1] == pytest.approx((kept_bytes["full"] + kept_bytes["none"]) / 2, rel=0.1)  # one layer of two


def test_each_rank_loads_the_base_onto_its_own_device(folder: Path) -> None:
    module = ChatGLM2LoRA(base="random", random_config=str(folder / "config.json"))
    strategy = SimpleNamespace(root_device=torch.device("meta"))
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=strategy, precision="bf16-mixed", datamodule=None, state=SimpleNamespace(fn=None)
    )
    module.configure_model()
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    # what Lightning calls at the end of a run would bring all weights into host memory; from here it would fail
    assert {parameter.device.type for parameter in module.cpu().parameters()} == {"meta"}


@pytest.mark.parametrize("rows_per_batch", [1, 5, 12])
def test_the_validation_loss_is_that_of_all_trained_tokens(folder: Path, rows_per_batch: int) -> None:
    """Rows have from 4 to 12 trained tokens; a mean of batches' means would depend on how they are cut."""
    module = rigged_module(folder, rate=0.0)
    trainer = fit(folder, module, [], validation_rows_per_batch=rows_per_batch)
    module.eval()
    total, count = 0.0, 0
    for line in (folder / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids = torch.tensor([row["input_ids"]])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < row["seq_len"], -100)
        batch = Batch(ids, labels, None, (0,), 0, 0, 0, 0)
        total += float(module.loss(batch, 1).detach())
        count += len(row["input_ids"]) - row["seq_len"]
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(total / count, rel=1e-5)
    assert isinstance(module, Rigged)


def test_norms_do_not_overflow_in_float16(folder: Path) -> None:
    """The square of 300 is beyond float16, and a number divided by infinity is 0."""
    module = rigged_module(folder)
    fit(folder, module, [], scaler=True)
    layer = next(part for part in module.modules() if isinstance(part, ChatGLM2Layer))
    normed = layer.input_layernorm(torch.full((1, 1, 32), 300.0, dtype=torch.float16))
    assert torch.equal(normed, torch.ones_like(normed))
