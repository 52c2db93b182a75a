# mypy: allow-untyped-calls
"""Conversion of ChatGLM2 to transformers' GLM: configuration, parameter names and tokenizer."""

from __future__ import annotations

import re
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from torch import Tensor
from transformers import GlmConfig, PreTrainedTokenizerFast

from kyon_pl.chatglm2.configuration import ChatGLM2Config, check_dtype, own_content
from kyon_pl.chatglm2.tokenization import ChatGLMTokenizer, read_tokenizer
from kyon_pl.errors import CheckpointError
from kyon_pl.files import COPY_AGAIN, entry, explained, read_json_object
from kyon_pl.vocabulary.pieces import CONTROL_TOKENS, SPECIAL_TOKENS

# Names of modules, ChatGLM2's -> GLM's. Those of a layer follow the number of the layer.
LAYERS = "transformer.encoder.layers"
GLM_LAYERS = "model.layers"
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
FUSED_QKV = "self_attention.query_key_value"
SPLIT_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

_GLM_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
_NOT_QUANTIZED = "Give a model in float16, bfloat16 or float32"

SPACE = "▁"  # SentencePiece's symbol of a space

# repeated characters, several scripts, white space, bytes, and special tokens spelled in text
PROBE_TEXTS = (
    "",
    " a  b ",
    "你好，世界\n\t答：",
    "people of philosophy " + " ".join((*CONTROL_TOKENS, *SPECIAL_TOKENS, "<0x0A>")),
    "[gMASK]sop</s>[Round 1]\n\n问：",
    "a" * 33 + "哈" * 17 + "=" * 21 + " " * 19 + "0123456789",
    "\U0001f600\u200d\u0301\ue000▁\u3000ひらがな한국어",
)


def glm_config(config: ChatGLM2Config) -> GlmConfig:
    """Convert a configuration to one for `GlmForCausalLM`."""
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


def read_glm_config(folder: Path) -> GlmConfig:
    """Read the `config.json` of a model for `GlmForCausalLM`.

    Raises:
        CheckpointError: it cannot be read, is quantized, or a value is missing or impossible.
        SettingError: the dtype that it names does not exist.
    """
    file = folder / "config.json"
    content = read_json_object(file)
    if content.get("quantization_config"):
        raise CheckpointError(f"{file}: quantization_config", "quantized weights cannot be loaded here", _NOT_QUANTIZED)
    check_dtype(content, file)
    own = own_content(content, GlmConfig)
    own |= {key: content[key] for key in ("rope_theta", "rope_scaling", "partial_rotary_factor") if key in content}
    for key in _GLM_SIZES:
        if own.get(key) is not None and entry(own, key, int, file) < 1:
            raise CheckpointError(f"{file}: {key}", f"{own[key]} is impossible", COPY_AGAIN)
    with explained("transformers", file):
        config: GlmConfig = GlmConfig.from_dict(own)
    rotated = dict(config.rope_parameters or {}).get("partial_rotary_factor")
    if not isinstance(rotated, float) or not 0 < rotated <= 1:
        raise CheckpointError(f"{file}: partial_rotary_factor", f"{rotated!r} is impossible", COPY_AGAIN)
    return config


def split_sizes(config: ChatGLM2Config) -> list[int]:
    """Rows of queries, keys and values in the fused projection."""
    keys = config.multi_query_group_num * config.kv_channels
    return [config.num_attention_heads * config.kv_channels, keys, keys]


def module_to_glm(module: str) -> list[str]:
    """GLM's names of a module: three for the fused projection, one for any other.

    Args:
        module: such as `transformer.encoder.layers.3.self_attention.dense`, without `.weight`.

    Raises:
        KeyError: ChatGLM2 has no such module.
    """
    match = re.fullmatch(rf"{re.escape(LAYERS)}\.(\d+)\.(.+)", module)
    if match is None:
        return [OUTSIDE_LAYERS[module]]
    names = SPLIT_QKV if match[2] == FUSED_QKV else [INSIDE_LAYERS[match[2]]]
    return [f"{GLM_LAYERS}.{match[1]}.{name}" for name in names]


def module_from_glm(module: str) -> str:
    """ChatGLM2's name of a GLM module; the fused projection for each of GLM's three.

    Raises:
        KeyError: GLM has no such module.
    """
    match = re.fullmatch(rf"{re.escape(GLM_LAYERS)}\.(\d+)\.(.+)", module)
    if match is None:
        return {glm: chatglm for chatglm, glm in OUTSIDE_LAYERS.items()}[module]
    inside = {glm: chatglm for chatglm, glm in INSIDE_LAYERS.items()} | dict.fromkeys(SPLIT_QKV, FUSED_QKV)
    return f"{LAYERS}.{match[1]}.{inside[match[2]]}"


def tensor_to_glm(name: str, tensor: Tensor, config: ChatGLM2Config) -> dict[str, Tensor]:
    """Convert one parameter to GLM's name or names. The tensors are views.

    Raises:
        KeyError: ChatGLM2 has no such parameter.
    """
    module, _, kind = name.rpartition(".")
    names = [f"{glm}.{kind}" for glm in module_to_glm(module)]
    tensors = tensor.split(split_sizes(config)) if len(names) > 1 else [tensor]
    return dict(zip(names, tensors, strict=True))


def glm_tokenizer(tokenizer: ChatGLMTokenizer) -> PreTrainedTokenizerFast:
    """Convert the tokenizer to one for `AutoTokenizer` without kyon_pl. Special tokens are not parsed from text.

    Raises:
        CheckpointError: its ids or its text differ from `tokenizer`'s for one of `PROBE_TEXTS`.
    """
    converted = PreTrainedTokenizerFast(
        tokenizer_object=_backend(tokenizer.sp_model),
        unk_token="<unk>",
        pad_token="<unk>",
        eos_token="</s>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        split_special_tokens=True,  # special tokens in a text are text
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=tokenizer.chat_template,
    )
    check_equal(converted, tokenizer, where="tokenizer.json")
    return converted


def check_equal(converted: PreTrainedTokenizerFast, tokenizer: ChatGLMTokenizer, where: str) -> None:
    """Compare two tokenizers on `PROBE_TEXTS`: ids with and without the prefix, and decoded text.

    Raises:
        CheckpointError: they differ.
    """
    for text in PROBE_TEXTS:
        ids = tokenizer.encode(text)
        same = converted.encode(text) == ids and converted.encode(text, add_special_tokens=False) == ids[2:]
        if not (same and converted.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)):
            fix = "Use the tokenizer.model of ChatGLM2-6B, or --format chatglm, which copies the file."
            raise CheckpointError(where, f"its encoding of {text!r:.60} differs from tokenizer.model's", fix)


def save_glm_tokenizer(base: Path, folder: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.

    Args:
        base: the folder with `tokenizer.model`.
        folder: to write to.

    Raises:
        CheckpointError: as for `ChatGLMTokenizer` and `glm_tokenizer`.
    """
    glm_tokenizer(read_tokenizer(base)).save_pretrained(str(folder))


def _backend(pieces: SentencePieceProcessor) -> Tokenizer:
    count = pieces.get_piece_size()
    vocab = {pieces.id_to_piece(i): i for i in range(count)}
    backend = Tokenizer(BPE(vocab=vocab, merges=_merges(pieces), unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [*CONTROL_TOKENS, *SPECIAL_TOKENS]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.post_processor = processors.TemplateProcessing(
        single="[gMASK] sop $A",
        pair="[gMASK] sop $A $B </s>",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[gMASK]", "sop", "</s>")],
    )
    return backend


def _merges(pieces: SentencePieceProcessor) -> list[tuple[str, str]]:
    """All pairs of pieces that form a piece, by its score. Byte and control pieces are never merged."""
    scores = {
        pieces.id_to_piece(i): pieces.get_score(i)
        for i in range(pieces.get_piece_size())
        if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i) or pieces.is_unused(i))
    }
    merges = [
        (-score, cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, _, left, right in sorted(merges)]
