"""Shared beginnings in half precision: as near to float32 as plain packs, in whatever order they are packed."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "invariant"))

from one_step import SEED, with_adapter
from peft import PeftModel
from test_packed import distance
from test_shared import BUDGET, LONGEST, make_rows, share

from kyon_pl.batch import Batch
from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.chatglm2.attention import choose_attention
from kyon_pl.chatglm2.checkpoint import random_base
from kyon_pl.data import DialogueCollator
from kyon_pl.data.batches.collate import PlannedCollator
from kyon_pl.data.batches.sampler import MicroBatch

CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PLACES = [
    ("cpu", torch.bfloat16),
    pytest.param("cuda", torch.bfloat16, marks=CUDA),
    pytest.param("cuda", torch.float16, marks=CUDA),
]
SCALE = 2.0**10  # of the loss, as a GradScaler in float16
ROWS = make_rows([([3, 4, 3, 3, 4, 4, 5 + n % 3], [50 + n, 51 + 2 * n, 52 + n]) for n in range(8)])


def adapted(device: str, dtype: torch.dtype) -> PeftModel:
    """Four layers in half precision with an adapter in float32, by the attention that a run would choose."""
    torch.manual_seed(SEED)
    shape = {"hidden_size": 128, "ffn_hidden_size": 192, "kv_channels": 64, "num_attention_heads": 4}
    config = ChatGLM2Config(num_layers=4, padded_vocab_size=96, initializer_range=0.05, **shape)
    attention = choose_attention("auto", torch.device(device), dtype)[0]
    base = random_base(config, dtype=dtype, device=torch.device(device), attn_implementation=attention)
    model = with_adapter(base).to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter *= 0.2  # of more, half precision leaves little
    return model


def gradient(model: PeftModel, batches: list[Batch], device: str, dtype: torch.dtype) -> Tensor:
    """Of the scaled loss, summed over the batches, and divided by the scale."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = torch.zeros(sum(parameter.numel() for parameter in trained), device=device)
    for batch in batches:
        inputs = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.model_inputs().items()}
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = model(**inputs, use_cache=False, skip_logits=True, num_items_in_batch=1).loss
        found = torch.autograd.grad(loss * SCALE, trained)
        total += torch.cat([part.flatten().float() for part in found]) / SCALE
    return total


def plain(order: list[int]) -> list[Batch]:
    """The rows in one pack that shares nothing."""
    collate = PlannedCollator(DialogueCollator(), BUDGET, LONGEST)
    return [collate((MicroBatch(tuple(order), 0), [ROWS[index] for index in order]))]


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_gradients_are_as_near_to_float32_as_those_of_plain_packs(device: str, dtype: torch.dtype) -> None:
    model = adapted(device, dtype)
    exact = gradient(deepcopy(model).float(), plain([*range(8)]), device, torch.float32)
    packs = {"plain": plain([*range(8)]), "another order": plain([*reversed(range(8))]), "shared": share(ROWS)}
    assert sum(batch.computed_tokens for batch in packs["shared"]) < 0.7 * sum(len(row["input_ids"]) for row in ROWS)
    found = {name: gradient(model, batches, device, dtype) for name, batches in packs.items()}
    assert all(vector.isfinite().all() for vector in found.values())
    errors = {name: distance(vector, exact) for name, vector in found.items()}
    print(device, dtype, ", ".join(f"{name} {error:.2%}" for name, error in errors.items()))
    assert errors["shared"] <= 1.2 * max(errors["plain"], errors["another order"])

    wrong = [batch for batch in packs["shared"] if batch.computed_tokens < batch.tokens]
    wrong[0].position_ids = torch.arange(wrong[0].input_ids.numel())[None]  # positions that count on
    assert distance(gradient(model, packs["shared"], device, dtype), exact) > 3 * errors["plain"]
