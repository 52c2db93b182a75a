"""Flash attention over packed rows on a GPU: what sdpa gives with its mask, without waiting or recompiling."""

from __future__ import annotations

import pytest
import torch
from published_layout import tiny_config
from torch import Tensor

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.attention import choose_attention
from kyon_pl.chatglm2.checkpoint import random_base
from kyon_pl.chatglm2.generation import generate_replies
from kyon_pl.chatglm2.modeling import find_trained_positions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

TOKENS = 512
ROW_LENGTHS = (100, 1, 250, 161)
CUDA = torch.device("cuda")


def build(attention: str, dtype: torch.dtype) -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    config = tiny_config(hidden_size=256, ffn_hidden_size=384, kv_channels=64, initializer_range=0.05)
    return random_base(config, dtype=dtype, device=CUDA, attn_implementation=attention)


def packed(lengths: tuple[int, ...] = ROW_LENGTHS) -> dict[str, Tensor | int]:
    """A batch as the collator gives it, everything found beforehand."""
    assert sum(lengths) == TOKENS
    ids = torch.randint(3, 96, (1, TOKENS), generator=torch.Generator().manual_seed(sum(lengths[:2])))
    position_ids = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    places = find_trained_positions(ids, position_ids)
    tensors = {"input_ids": ids, "labels": ids, "position_ids": position_ids, "cu_seqlens": cu_seqlens}
    return {name: tensor.to(CUDA) for name, tensor in (tensors | {"trained_positions": places}).items()} | {
        "max_seqlen": max(lengths)
    }


def step(model: ChatGLM2ForCausalLM, batch: dict[str, Tensor | int]) -> tuple[Tensor, Tensor]:
    """The loss, and all gradients as one vector in float32."""
    model.zero_grad()
    loss = model(**batch, skip_logits=True, use_cache=False, num_items_in_batch=100).loss
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten().float() for parameter in model.parameters()])


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mixed", [True, False])
def test_equals_sdpa_with_a_mask(dtype: torch.dtype, mixed: bool) -> None:
    """Mixed: float32 weights under autocast. The gradients of rows that see each other are the negative control."""
    weights = torch.float32 if mixed else dtype
    assert choose_attention("auto", CUDA, dtype)[0] == "varlen"
    exact_loss, exact = step(build("sdpa", torch.float32), packed())
    _, leaking = step(build("sdpa", torch.float32), packed() | {"attention_mask": torch.ones(1, TOKENS, device=CUDA)})
    with torch.autocast("cuda", dtype=dtype, enabled=mixed):
        loss, gradients = step(build("varlen", weights), packed())
        _, gradients_sdpa = step(build("sdpa", weights), packed())
        longer = packed() | {"max_seqlen": TOKENS, "cu_seqlens": packed((*ROW_LENGTHS, 0, 0))["cu_seqlens"]}
        padded_loss, padded = step(build("varlen", weights), longer)
    assert abs(loss / exact_loss - 1) < 0.01
    assert distance(gradients, exact) < 2 * distance(gradients_sdpa, exact) + 1e-3
    assert distance(leaking, exact) > 10 * distance(gradients, exact)
    assert abs(padded_loss / loss - 1) < 1e-4
    assert distance(padded, gradients) < distance(gradients, exact)


def test_is_as_exact_as_sdpa() -> None:
    """In bfloat16, against float32, over batches of unlike rows: at most 1.2 times sdpa's error."""
    exact_model, varlen, sdpa = (
        build(attention, dtype)
        for attention, dtype in (("sdpa", torch.float32), ("varlen", torch.bfloat16), ("sdpa", torch.bfloat16))
    )
    errors = {"varlen": 0.0, "sdpa": 0.0}
    for first in (20, 60, 100, 140, 180):
        batch = packed((first, 210 - first, 252, 50))
        _, exact = step(exact_model, batch)
        for name, model in (("varlen", varlen), ("sdpa", sdpa)):
            errors[name] += distance(step(model, batch)[1], exact)
    print(f"relative gradient error: varlen {errors['varlen'] / 5:.4%}, sdpa {errors['sdpa'] / 5:.4%}")
    assert errors["varlen"] <= 1.2 * errors["sdpa"]


@pytest.mark.parametrize("checkpointing", [True, False])
def test_never_waits_for_the_device(checkpointing: bool) -> None:
    model, batch = build("varlen", torch.bfloat16).train(), packed()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    step(model, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("checkpointing", [True, False])
def test_compiled_layers(checkpointing: bool) -> None:
    """Rows of other lengths and another number of rows do not compile again and again."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model, eager = build("varlen", torch.bfloat16).train(), build("varlen", torch.bfloat16)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in model.transformer.encoder.layers:
        layer.compile()
    for lengths in (ROW_LENGTHS, (500, 12), (1, 2, 3, 4, 5, 497), (256, 256), (512,), (100, 200, 212)):
        _, expected = step(eager, packed(lengths))
        _, found = step(model, packed(lengths))
        assert distance(found, expected) < 0.02
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
    assert not torch._dynamo.utils.counters["graph_break"]


def test_stands_back_for_generation_and_float32() -> None:
    prompts = [[5, 6, 7, 8], [9, 10], [11] * 40]
    for dtype in (torch.bfloat16, torch.float32):
        flash, sdpa = build("varlen", dtype), build("sdpa", dtype)
        assert generate_replies(flash, prompts, max_new_tokens=8) == generate_replies(sdpa, prompts, max_new_tokens=8)
    assert torch.equal(step(flash, packed())[1], step(sdpa, packed())[1])
