"""Compiled layers and quantized weights on a GPU: the numbers of plain ones, and nothing compiled twice."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kyon_pl import ChatGLM2LoRA
from kyon_pl.batch import Batch
from kyon_pl.data.batches.collate import DialogueCollator, PlannedCollator
from kyon_pl.data.batches.sampler import MicroBatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

TOKENS = 1024
ROWS = ((300, 200, 100), (500, 20, 30, 40, 50), (1000,), (64,) * 12)
SHAPE = {
    "model_type": "chatglm",
    "num_layers": 3,
    "padded_vocab_size": 128,
    "hidden_size": 256,
    "ffn_hidden_size": 512,
    "kv_channels": 64,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
}


def batches() -> list[Batch]:
    """Packs of one shape and unlike numbers of rows."""
    collate = PlannedCollator(DialogueCollator(), TOKENS, TOKENS)
    made = []
    for number, lengths in enumerate(ROWS):
        draw = torch.Generator().manual_seed(number)
        ids = [torch.randint(3, 128, (length,), generator=draw).tolist() for length in lengths]
        rows = [{"input_ids": row, "seq_len": max(1, len(row) - 10)} for row in ids]
        made.append(collate((MicroBatch(tuple(range(len(rows))), 10 * len(rows)), rows)))
    return made


def on_gpu(batch: Batch) -> Batch:
    moved = {name: value.cuda() for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return Batch(**vars(batch) | moved)


def gradients(folder: Path, precision: str, **settings: Any) -> dict[str, Tensor]:
    """Of every lora_B, over all batches; a compiled model may compile nothing after the first."""
    (folder / "config.json").write_text(json.dumps(SHAPE))
    module = ChatGLM2LoRA(base="random", random_config=str(folder / "config.json"), **settings)
    module.initial_adapter.lora.lora_dropout = 0.0
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    module._trainer = SimpleNamespace(strategy=strategy, precision=precision, datamodule=None, world_size=1)  # type: ignore[assignment]
    torch.manual_seed(0)
    module.configure_model()
    module.cuda()
    torch._dynamo.reset()
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    for number, batch in enumerate(batches()):
        stance = "fail_on_recompile" if number else "default"
        with torch.compiler.set_stance(stance), torch.autocast("cuda", dtype):
            loss = module.loss(on_gpu(batch), 100)
        loss.backward()
    return {name: value.grad for name, value in module.named_parameters() if ".lora_B." in name}


def error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    f, w = (torch.cat([value.flatten().float() for value in grads.values()]) for grads in (found, wanted))
    return float((f - w).norm() / w.norm())


@pytest.mark.parametrize("checkpointing", ["none", "full", 1])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_compiled_packs(tmp_path: Path, precision: str, checkpointing: Any) -> None:
    plain = gradients(tmp_path, precision, attention="varlen")
    compiled = gradients(tmp_path, precision, attention="varlen", compile=True, checkpointing=checkpointing)
    print(f"\n{precision} {checkpointing}: {error(compiled, plain):.4f}")
    assert error(compiled, plain) < 0.02


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("quantization", "most"), [("nf4", 0.35), ("fp8", 0.15)])
def test_quantized_packs(tmp_path: Path, quantization: Any, most: float, compiled: bool) -> None:
    if quantization == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs sm_89")
    plain = gradients(tmp_path, "bf16-mixed")
    found = gradients(tmp_path, "bf16-mixed", quantization=quantization, compile=compiled, checkpointing="none")
    print(f"\n{quantization} compiled {compiled}: {error(found, plain):.4f}")
    assert 0.01 < error(found, plain) < most
