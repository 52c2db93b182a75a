"""A tiny ChatGLM2 on disk in the exact layout of the published one. Its remote code raises if it runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM

AUTO_MAP = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSequenceClassification": "modeling_chatglm.ChatGLMForSequenceClassification",
}
REMOTE_CODE = ("configuration_chatglm.py", "modeling_chatglm.py", "tokenization_chatglm.py", "quantization.py")


def tiny_config(**changes: Any) -> ChatGLM2Config:
    """Two layers, ids below 96; random weights wide enough that greedy choices are clear."""
    shape = {
        "num_layers": 2,
        "padded_vocab_size": 96,
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "kv_channels": 8,
        "num_attention_heads": 4,
        "multi_query_group_num": 2,
        "seq_length": 256,
        "initializer_range": 0.3,
    }
    return ChatGLM2Config(**(shape | changes))


def published_config(config: ChatGLM2Config) -> dict[str, Any]:
    """The published config.json, key for key, with this shape."""
    return {
        "_name_or_path": "THUDM/chatglm2-6b",
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": AUTO_MAP,
        "add_bias_linear": False,
        "add_qkv_bias": config.add_qkv_bias,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": config.ffn_hidden_size,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": config.hidden_size,
        "kv_channels": config.kv_channels,
        "layernorm_epsilon": config.layernorm_epsilon,
        "multi_query_attention": True,
        "multi_query_group_num": config.multi_query_group_num,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_layers,
        "original_rope": True,
        "padded_vocab_size": config.padded_vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": config.seq_length,
        "use_cache": True,
        "torch_dtype": "float16",
        "transformers_version": "4.27.1",
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def write_published_layout(
    folder: Path, model: ChatGLM2ForCausalLM, *, tokenizer_model: Path | None = None, shards: int = 7
) -> Path:
    """Write config, float16 pickle shards with index, tokenizer files and remote code as THUDM/chatglm2-6b has them.

    Args:
        folder: made if it is not there.
        model: gives shape and weights.
        tokenizer_model: a `tokenizer.model` to put beside them.
        shards: pickle files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", published_config(model.config))
    weights = {name: tensor.to(torch.float16) for name, tensor in model.state_dict().items()}
    rotated = model.config.kv_channels // 2
    inv_freq = 1.0 / 10000 ** (torch.arange(0, rotated, 2) / rotated)
    weights["transformer.rotary_pos_emb.inv_freq"] = inv_freq.to(torch.float16)
    _write_shards(folder, dict(sorted(weights.items())), shards)
    auto_map = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
    tokenizer_config = {"name_or_path": "THUDM/chatglm2-6b", "remove_space": False, "do_lower_case": False}
    tokenizer_config |= {"tokenizer_class": "ChatGLMTokenizer", "auto_map": auto_map}
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    for name in REMOTE_CODE:
        (folder / name).write_text(f"raise RuntimeError('remote code was run: {name}')\n")
    if tokenizer_model is not None:
        shutil.copyfile(tokenizer_model, folder / "tokenizer.model")
    return folder


def _write_shards(folder: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    weight_map = {}
    names = list(weights)
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        held = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        torch.save({name: weights[name].clone() for name in held}, folder / file)
        weight_map |= dict.fromkeys(held, file)
    total_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    _write_json(folder / "pytorch_model.bin.index.json", index)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
