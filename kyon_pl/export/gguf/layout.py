"""llama.cpp's architecture `chatglm`: its keys, the names of its tensors, and their types.

It computes ChatGLM2 as it was published: nothing is permuted or split, the query/key/value projection stays fused, and
so do gate and up projection, gate first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from kyon_pl.chatglm2.configuration import ChatGLM2Config
from kyon_pl.chatglm2.glm import LAYERS
from kyon_pl.errors import CheckpointError

ARCHITECTURE = "chatglm"
Quantization = Literal["f32", "f16", "bf16", "q8_0"]
Value = bool | int | float | str
"""Of a key. Whole numbers are stored as uint32 and fractions as float32."""

TYPES: dict[Quantization, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
# modules, ChatGLM2's -> llama.cpp's; those of a layer follow the number of the layer
_OUTSIDE_LAYERS = {
    "transformer.embedding.word_embeddings": "token_embd",
    "transformer.encoder.final_layernorm": "output_norm",
    "transformer.output_layer": "output",
}
_INSIDE_LAYERS = {
    "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}


def module_name(module: str) -> str:
    """llama.cpp's name of a module.

    Args:
        module: such as `transformer.encoder.layers.3.self_attention.dense`.

    Raises:
        KeyError: ChatGLM2 has no such module.
    """
    match = re.fullmatch(rf"{re.escape(LAYERS)}\.(\d+)\.(.+)", module)
    return f"blk.{match[1]}.{_INSIDE_LAYERS[match[2]]}" if match else _OUTSIDE_LAYERS[module]


def tensor_name(name: str) -> str:
    """llama.cpp's name of a parameter, such as `blk.3.attn_qkv.bias`.

    Raises:
        KeyError: ChatGLM2 has no such parameter.
    """
    module, _, kind = name.rpartition(".")
    return f"{module_name(module)}.{kind}"


def tensor_type(shape: Sequence[int], quantization: Quantization) -> GGMLQuantizationType:
    """The type of a tensor: float32 for norms and biases, and float16 where the columns do not fill whole blocks.

    llama-quantize chooses the same types.

    Args:
        shape: (rows, columns), or (channels,).
        quantization: of the file.
    """
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    kind = TYPES[quantization][0]
    elements_per_block, _ = GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % elements_per_block == 0 else GGMLQuantizationType.F16


def model_settings(config: ChatGLM2Config, quantization: Quantization) -> dict[str, Value]:
    """The keys that describe the model.

    Raises:
        CheckpointError: the heads do not fill the residual stream, which llama.cpp requires.
    """
    heads, channels = config.num_attention_heads, config.kv_channels
    if heads * channels != config.hidden_size:
        found = f"{heads} heads of {channels} channels, and a hidden_size of {config.hidden_size}"
        raise CheckpointError("config.json: kv_channels", found, "llama.cpp needs equal ones; use --format chatglm")
    return {
        "general.file_type": int(TYPES[quantization][1]),
        "general.quantization_version": 2,
        f"{ARCHITECTURE}.context_length": config.seq_length,
        f"{ARCHITECTURE}.embedding_length": config.hidden_size,
        f"{ARCHITECTURE}.feed_forward_length": config.ffn_hidden_size,
        f"{ARCHITECTURE}.block_count": config.num_layers,
        f"{ARCHITECTURE}.attention.head_count": heads,
        f"{ARCHITECTURE}.attention.head_count_kv": config.multi_query_group_num,
        f"{ARCHITECTURE}.attention.layer_norm_rms_epsilon": config.layernorm_epsilon,
        f"{ARCHITECTURE}.rope.dimension_count": channels // 2,
        f"{ARCHITECTURE}.rope.freq_base": 10000.0,
        f"{ARCHITECTURE}.vocab_size": config.padded_vocab_size,
    }
