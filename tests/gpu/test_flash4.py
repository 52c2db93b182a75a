"""flash-attn-4 on a GPU of sm_90 or newer: what torch's flash attention gives, over rows that share and compiled.

Compiled layers are compared with compiled ones: they round to bfloat16 in fewer places than eager ones.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "invariant"))

from one_step import tiny_base
from test_shared import FAMILY, share

from kyon_pl.batch import Batch
from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM
from kyon_pl.chatglm2.attention import choose_attention
from kyon_pl.chatglm2.checkpoint import random_base
from kyon_pl.training.attention_check import find_difference

CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="no GPU of sm_90"
    ),
    pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash-attn-4 is not installed"),
]


def small(attention: str) -> ChatGLM2ForCausalLM:
    """Two layers with heads of the 6B's size, and weights small enough that rounding is not amplified."""
    shape = {"hidden_size": 512, "ffn_hidden_size": 768, "kv_channels": 128, "num_attention_heads": 4}
    config = ChatGLM2Config(**(tiny_base("sdpa").config.to_dict() | shape | {"initializer_range": 0.02}))
    torch.manual_seed(0)
    base = random_base(config, dtype=torch.bfloat16, device=CUDA, attn_implementation=attention)
    return base.requires_grad_(True)


def loss_and_gradient(model: ChatGLM2ForCausalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    inputs = {name: x.to(CUDA) if isinstance(x, Tensor) else x for name, x in batch.model_inputs().items()}
    loss = model(**inputs, use_cache=False, skip_logits=True).loss
    gradients = torch.autograd.grad(loss, list(model.transformer.encoder.layers.parameters()))
    return loss.detach().float(), torch.cat([gradient.flatten().float() for gradient in gradients])


@pytest.mark.parametrize("compiled", [False, True])
def test_rows_that_share(compiled: bool) -> None:
    assert choose_attention("auto", CUDA, torch.bfloat16)[0] == "fa4"
    (batch,) = share(FAMILY)
    found = {}
    for attention in ("fa4", "varlen"):
        torch._dynamo.reset()
        model = small(attention)
        if compiled:
            for layer in model.transformer.encoder.layers:
                layer.compile(fullgraph=True)
        found[attention] = loss_and_gradient(model, batch)
    (loss, gradient), (expected_loss, expected) = found["fa4"], found["varlen"]
    _, exact = loss_and_gradient(small("sdpa").float(), batch)

    def off(one: Tensor, other: Tensor) -> float:
        return float((one - other).norm() / other.norm())

    print(
        f"compiled {compiled}: loss {float(loss - expected_loss):.2g} apart, gradients {off(gradient, expected):.2%};"
    )
    print(f"from float32: flash-attn-4 {off(gradient, exact):.2%}, torch's {off(expected, exact):.2%}")
    assert abs(loss / expected_loss - 1) < 0.001
    assert off(gradient, expected) < 0.02
    assert off(gradient, exact) < 1.2 * off(expected, exact) < 0.05


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_check_of_a_run_passes(dtype: torch.dtype, deterministic: bool) -> None:
    (batch,) = share(FAMILY)
    torch.use_deterministic_algorithms(deterministic)
    try:
        assert find_difference(ChatGLM2Config(), batch, dtype, CUDA) is None
    finally:
        torch.use_deterministic_algorithms(False)
