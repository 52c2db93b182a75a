"""Compiled layers: the same names and numbers, and nothing compiled anew once the run has begun."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rigged import Rigged, fit, rigged_module, trained, write_inputs
from torch._dynamo.utils import counters

from kyon_pl.batch import Batch
from kyon_pl.training.callbacks import FirstValidation, MemoryGuard

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with a C++ compiler")


class Warm(Rigged):
    """Refuses whatever would be compiled after the first step."""

    batches: list[int]

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.batches = [*getattr(self, "batches", []), len(batch.row_numbers)]
        stance = "fail_on_recompile" if len(self.batches) > 2 else "default"
        with torch.compiler.set_stance(stance):
            return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("checkpointing", ["none", 1])
def test_compiled_layers_train_the_same_adapter(tmp_path: Path, checkpointing: Any) -> None:
    """Packs of unlike numbers of rows, validation in between; without dropout, whose masks are others when compiled."""
    write_inputs(tmp_path)
    results = {}
    for compiled in (False, True):
        torch._dynamo.reset()
        counters.clear()
        module = rigged_module(tmp_path, Warm, compile=compiled, checkpointing=checkpointing)
        module.initial_adapter.lora.lora_dropout = 0.0
        guards = [MemoryGuard(), FirstValidation()]
        fit(tmp_path, module, guards, epochs=3, batching="packed", tokens_per_batch=90)
        results[compiled] = trained(module)
        # one for all layers, or one for those that are checkpointed and one for the others; and one for the last layer,
        # which computes labels only
        assert counters["stats"]["unique_graphs"] in (({2, 2 + (checkpointing == 1)}) if compiled else {0})
        assert not counters["graph_break"]
    assert len(set(module.batches)) > 1
    assert results[True].keys() == results[False].keys()
    for name, value in results[False].items():
        torch.testing.assert_close(results[True][name], value, rtol=1e-3, atol=1e-5)
