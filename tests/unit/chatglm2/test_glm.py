"""Conversion to GLM gives equal logits, and the comparison detects mistakes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from published_layout import tiny_config
from torch import Tensor
from transformers import GlmForCausalLM

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.glm import glm_config, split_sizes, tensor_to_glm

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    model = ChatGLM2ForCausalLM(tiny_config()).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter)
    return model


def glm_state(model: ChatGLM2ForCausalLM) -> State:
    return {
        name: part
        for ours, tensor in model.state_dict().items()
        for name, part in tensor_to_glm(ours, tensor, model.config).items()
    }


def largest_difference(model: ChatGLM2ForCausalLM, state: State) -> float:
    glm = GlmForCausalLM(glm_config(model.config)).eval()
    glm.load_state_dict(state, strict=True)
    input_ids = torch.randint(96, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return float((glm(input_ids).logits - model(input_ids).logits).abs().max())


def test_logits_are_equal(model: ChatGLM2ForCausalLM) -> None:
    assert largest_difference(model, glm_state(model)) < 1e-5


def swap_gate_and_up(state: State) -> State:
    return {name: torch.cat(t.chunk(2)[::-1]) if "gate_up" in name else t for name, t in state.items()}


def swap_keys_and_values(state: State) -> State:
    def other(name: str) -> str:
        return name.replace("k_proj", "?").replace("v_proj", "k_proj").replace("?", "v_proj")

    return {name: state[other(name)] for name in state}


def swap_norms(state: State) -> State:
    def other(name: str) -> str:
        return name.replace("input_l", "?").replace("post_attention_l", "input_l").replace("?", "post_attention_l")

    return {name: state[other(name)] for name in state}


@pytest.mark.parametrize("mistake", [swap_gate_and_up, swap_keys_and_values, swap_norms])
def test_the_comparison_detects_a_mistake(model: ChatGLM2ForCausalLM, mistake: Callable[[State], State]) -> None:
    assert largest_difference(model, mistake(glm_state(model))) > 1e-2


def test_an_unknown_name_is_refused(model: ChatGLM2ForCausalLM) -> None:
    with pytest.raises(KeyError):
        tensor_to_glm("transformer.encoder.layers.0.mlp.dense.weight", torch.zeros(1), model.config)


def test_split_sizes_are_those_of_the_6b() -> None:
    config = tiny_config(hidden_size=4096, kv_channels=128, num_attention_heads=32, multi_query_group_num=2)
    assert split_sizes(config) == [4096, 256, 256]
