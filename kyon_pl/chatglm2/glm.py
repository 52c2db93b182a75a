# mypy: allow-untyped-calls
"""The same model as transformers' `GlmForCausalLM`, which programs know that do not know ChatGLM2.

One table of names serves both ways. The numbers are the same too: transformers' GLM keeps queries, keys and values
apart, which are the rows of the fused projection, one after the other; everything else only has another name.
Source: `modeling_glm.py` of transformers, `modeling_chatglm.py` of THUDM/chatglm2-6b.
"""

from __future__ import annotations

import re

from torch import Tensor
from transformers import GlmConfig

from kyon_pl.chatglm2.configuration import ChatGLM2Config

# ours -> GLM's, of modules; a layer's number stands in both
OUTSIDE_LAYERS = {
    "transformer.embedding.word_embeddings": "model.embed_tokens",
    "transformer.encoder.final_layernorm": "model.norm",
    "transformer.output_layer": "lm_head",
}
INSIDE_LAYERS = {
    "input_layernorm": "input_layernorm",
    "self_attention.dense": "self_attn.o_proj",
    "post_attention_layernorm": "post_attention_layernorm",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}
FUSED = "self_attention.query_key_value"
PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

LAYER = "transformer.encoder.layers"
GLM_LAYER = "model.layers"


def glm_config(config: ChatGLM2Config) -> GlmConfig:
    """The configuration of the same model for `GlmForCausalLM`."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return GlmConfig(
        vocab_size=config.padded_vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.multi_query_group_num,
        head_dim=config.kv_channels,
        max_position_embeddings=config.seq_length,
        rms_norm_eps=config.layernorm_epsilon,
        attention_bias=config.add_qkv_bias,
        attention_dropout=0.0,
        rope_parameters=rope,
        tie_word_embeddings=False,
        pad_token_id=config.pad_token_id,
        bos_token_id=None,
        eos_token_id=config.eos_token_id,
        architectures=["GlmForCausalLM"],
    )


def split_sizes(config: ChatGLM2Config) -> list[int]:
    """Rows of queries, keys and values in the fused projection."""
    keys = config.multi_query_group_num * config.kv_channels
    return [config.num_attention_heads * config.kv_channels, keys, keys]


def module_to_glm(module: str) -> list[str]:
    """GLM's name of a module; of the fused projection its three parts' names.

    Args:
        module: such as `transformer.encoder.layers.3.self_attention.dense`, without `.weight`.

    Raises:
        KeyError: the model has no such module.
    """
    match = re.fullmatch(rf"{re.escape(LAYER)}\.(\d+)\.(.+)", module)
    if match is None:
        return [OUTSIDE_LAYERS[module]]
    parts = PARTS if match[2] == FUSED else [INSIDE_LAYERS[match[2]]]
    return [f"{GLM_LAYER}.{match[1]}.{part}" for part in parts]


def module_from_glm(module: str) -> str:
    """Our name of a module of GLM; its three projections are parts of one here.

    Raises:
        KeyError: GLM has no such module.
    """
    match = re.fullmatch(rf"{re.escape(GLM_LAYER)}\.(\d+)\.(.+)", module)
    if match is None:
        return {theirs: ours for ours, theirs in OUTSIDE_LAYERS.items()}[module]
    inside = {theirs: ours for ours, theirs in INSIDE_LAYERS.items()} | dict.fromkeys(PARTS, FUSED)
    return f"{LAYER}.{match[1]}.{inside[match[2]]}"


def tensor_to_glm(name: str, tensor: Tensor, config: ChatGLM2Config) -> dict[str, Tensor]:
    """One weight or bias under GLM's name or names; views of its memory.

    Raises:
        KeyError: the model has no such parameter.
    """
    module, _, kind = name.rpartition(".")
    names = [f"{theirs}.{kind}" for theirs in module_to_glm(module)]
    parts = tensor.split(split_sizes(config)) if len(names) > 1 else [tensor]
    return dict(zip(names, parts, strict=True))
