# mypy: allow-untyped-calls
"""ChatGLM2 as transformers' GLM: configuration, weight names and tokenizer."""

from __future__ import annotations

import re
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from torch import Tensor
from transformers import GlmConfig, PreTrainedTokenizerFast

from kyon_pl.chatglm2.configuration import ChatGLM2Config
from kyon_pl.chatglm2.tokenization import SPECIAL_TOKENS, ChatGLMTokenizer, read_tokenizer
from kyon_pl.errors import CheckpointError

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


CONTROL_TOKENS = ("<unk>", "<s>", "</s>")
SPACE = "▁"  # what a space is in a piece

# spaces and their like, bytes, runs, scripts, and every special token spelt in text
PROBE_TEXTS = (
    "",
    " a  b ",
    "你好，世界\n\t答：",
    "people of philosophy " + " ".join((*CONTROL_TOKENS, *SPECIAL_TOKENS, "<0x0A>")),
    "[gMASK]sop</s>[Round 1]\n\n问：",
    "a" * 33 + "哈" * 17 + "=" * 21 + " " * 19 + "0123456789",
    "\U0001f600\u200d\u0301\ue000▁\u3000ひらがな한국어",
)


def glm_tokenizer(tokenizer: ChatGLMTokenizer) -> PreTrainedTokenizerFast:
    """The same tokenizer for `AutoTokenizer` of plain transformers; no text can spell its special tokens.

    Raises:
        CheckpointError: it gives other ids or another text than `tokenizer` for one of `PROBE_TEXTS`.
    """
    made = PreTrainedTokenizerFast(
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
    check_equal(made, tokenizer, where="tokenizer.json")
    return made


def check_equal(made: PreTrainedTokenizerFast, tokenizer: ChatGLMTokenizer, where: str) -> None:
    """Compare two tokenizers on `PROBE_TEXTS`: ids with and without the prefix, and the text that comes back.

    Raises:
        CheckpointError: they differ.
    """
    for text in PROBE_TEXTS:
        ids = tokenizer.encode(text)
        same = made.encode(text) == ids and made.encode(text, add_special_tokens=False) == ids[2:]
        if not (same and made.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)):
            fix = "Use the tokenizer.model of ChatGLM2-6B, or --format chatglm, which keeps the file as it is."
            raise CheckpointError(where, f"another encoding of {text!r:.60} than tokenizer.model has", fix)


def save_glm_tokenizer(base: Path, folder: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.

    Args:
        base: the folder with `tokenizer.model`.
        folder: where to.

    Raises:
        CheckpointError: as `ChatGLMTokenizer` and `glm_tokenizer` raise it.
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
    specials = [*CONTROL_TOKENS, *SPECIAL_TOKENS]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    used = ("[gMASK]", "sop", "</s>")
    backend.post_processor = processors.TemplateProcessing(
        single="[gMASK] sop $A",
        pair="[gMASK] sop $A $B </s>",
        special_tokens=[(token, backend.token_to_id(token)) for token in used],
    )
    return backend


def _merges(pieces: SentencePieceProcessor) -> list[tuple[str, str]]:
    """Every two pieces that make a third. Bytes and control pieces take no part: no text spells them."""
    scores = {
        pieces.id_to_piece(i): pieces.get_score(i)
        for i in range(pieces.get_piece_size())
        if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i) or pieces.is_unused(i))
    }
    found = [
        (-score, cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, _, left, right in sorted(found)]
