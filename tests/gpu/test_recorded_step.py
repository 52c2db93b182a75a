"""A recorded forward pass gives the logits of a whole one, with an adapter and without, for ChatGLM2 and for GLM."""

from __future__ import annotations

import pytest
import torch
from published_layout import tiny_config
from torch import nn
from transformers import AutoModelForCausalLM

from kyon_pl.chatglm2.checkpoint import random_base
from kyon_pl.chatglm2.generation import CudaGraphStep, stream_reply
from kyon_pl.chatglm2.glm import glm_config
from kyon_pl.lora import attach_lora, reference_lora

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
PROMPT = [5, 17, 80, 33, 9, 61, 24]
NEW_TOKENS = 24


def model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "glm":
        return AutoModelForCausalLM.from_config(glm_config(tiny_config()), attn_implementation="sdpa").to(DEVICE).eval()
    base = random_base(tiny_config(), dtype=torch.float32, device=DEVICE, attn_implementation="sdpa").eval()
    if kind == "chatglm":
        return base
    adapted = attach_lora(base, reference_lora(), "random").eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    return adapted


@pytest.mark.parametrize("kind", ["chatglm", "adapter", "glm"])
def test_replayed_logits_are_those_of_a_whole_pass(kind: str) -> None:
    speaker = model(kind)
    ids = torch.tensor([PROMPT], device=DEVICE)
    with torch.inference_mode():
        read = speaker(input_ids=ids, use_cache=True)
        step = CudaGraphStep(speaker, read.past_key_values, NEW_TOKENS)
        for place in range(NEW_TOKENS):
            token = torch.tensor([[3 + 3 * place]], device=DEVICE)
            ids = torch.cat([ids, token], dim=1)
            logits = step(token)[0, -1].clone()
            whole = speaker(input_ids=ids).logits[0, -1]
            torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)
            assert (step.graph is not None) == (place > 0)
        other = speaker(input_ids=ids[:, 1:]).logits[0, -1]
        assert (logits - other).abs().max() > 1e-3  # without the first token they are others


def test_adapter_and_base_take_turns() -> None:
    adapted = model("adapter")

    def tokens() -> list[int]:
        return stream_reply(
            adapted, PROMPT, max_new_tokens=NEW_TOKENS, eos_token_id=-1, on_token=lambda token: None
        ).token_ids

    tuned = tokens()
    with adapted.disable_adapter():
        base = tokens()
    assert tokens() == tuned
    assert base != tuned
