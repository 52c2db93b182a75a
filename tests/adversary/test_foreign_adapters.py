"""Numbers in a config that the weights contradict are refused before memory or time is spent on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapters_made import base, written_adapter
from damage import set_value

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.checkpoint import load_base
from kyon_pl.demo import BASE
from kyon_pl.errors import CheckpointError
from kyon_pl.lora import load_adapter


@pytest.mark.parametrize(("key", "value"), [("r", 10**9), ("rank_pattern", {"query_key_value": 10**9})])
def test_impossible_rank_is_refused_before_memory_is_allocated(
    key: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*words: object, **named: object) -> None:
        raise AssertionError("PEFT was asked")

    folder = written_adapter("fused", tmp_path / "adapter")
    set_value(folder / "adapter_config.json", (key,), value)
    monkeypatch.setattr("kyon_pl.lora.adapter.get_peft_model", allocate)
    with pytest.raises(CheckpointError, match=r"its rank is 16, and adapter_config\.json says 1000000000"):
        load_adapter(base(), folder, "demo")


def test_millions_of_layers_are_refused_before_they_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(self: object, config: object) -> None:
        raise AssertionError("the model was built")

    folder = shutil.copytree(BASE, tmp_path / "base")
    set_value(folder / "config.json", ("num_layers",), 10**7)
    monkeypatch.setattr(ChatGLM2ForCausalLM, "__init__", build)
    with pytest.raises(CheckpointError, match=r"config\.json has 10,000,000 layers"):
        load_base(folder, dtype=torch.float32, device=torch.device("cpu"), attn_implementation="sdpa")


@pytest.mark.parametrize("kind", ["sparse", "meta", "float8"])
def test_tensors_of_another_kind_are_refused(kind: str, tmp_path: Path) -> None:
    folder = written_adapter("fused", tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    made = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "meta": lambda: torch.empty(3, device="meta"),
        "float8": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
    }
    torch.save({"x.lora_A.weight": made[kind]()}, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin: x\.lora_A\.weight: it is not"):
        load_adapter(base(), folder, "demo")
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 16
