"""The vocabulary of a GGUF: the pieces of `tokenizer.model`, the special tokens, and padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gguf import TokenType
from sentencepiece import sentencepiece_model_pb2

from kyon_pl.errors import CheckpointError
from kyon_pl.export.gguf.layout import Value
from kyon_pl.vocabulary.pieces import CONTROL_TOKENS, EOS_TOKEN_ID, SPECIAL_TOKENS, read_pieces

# llama.cpp merges pieces to any token of the same text: `sop` and `eop` would occur inside philosophy and people
SPELLINGS = {"sop": "[sop]", "eop": "[eop]"}
PREFIX = "[gMASK][sop]"
"""The beginning of every prompt, as text for llama.cpp."""

_BPE, _NORMALIZER = 2, "identity"  # of SentencePiece's model file
_FIX = "Use ChatGLM2's tokenizer.model, or --format chatglm, which copies it"


@dataclass(frozen=True)
class Vocabulary:
    """All tokens, one for each row of the embedding.

    Attributes:
        tokens: their texts, each once.
        scores: the higher, the earlier two pieces are merged into it.
        types: numbers of `gguf.TokenType`, which are SentencePiece's too.
    """

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]

    def settings(self) -> dict[str, Value]:
        """The keys that describe the tokenizer."""
        return {
            "tokenizer.ggml.model": "llama",  # SentencePiece
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.unknown_token_id": CONTROL_TOKENS.index("<unk>"),
            "tokenizer.ggml.padding_token_id": CONTROL_TOKENS.index("<unk>"),
            "tokenizer.ggml.eos_token_id": EOS_TOKEN_ID,
            "tokenizer.ggml.bos_token_id": self.tokens.index("[gMASK]"),
            "tokenizer.ggml.add_bos_token": False,  # unset, <s> would be put before every prompt
            "tokenizer.ggml.add_eos_token": False,
            "tokenizer.ggml.add_space_prefix": True,
            "tokenizer.ggml.remove_extra_whitespaces": False,
        }


def read_vocabulary(file: Path, size: int) -> Vocabulary:
    """Read a `tokenizer.model`, append the special tokens, and fill up with unused tokens.

    Args:
        file: path of `tokenizer.model`.
        size: rows of the embedding.

    Raises:
        CheckpointError: it cannot be read, llama.cpp would encode text in another way, or a token that is no text could
            be reached by text.
    """
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made on import
    model.ParseFromString(read_pieces(file, str(file)).serialized_model_proto())
    rules = model.normalizer_spec
    if (model.trainer_spec.model_type, rules.name) != (_BPE, _NORMALIZER):
        raise CheckpointError(str(file), f"not BPE without normalization, but {rules.name!r}", _FIX)
    if not rules.add_dummy_prefix or rules.remove_extra_whitespaces or not rules.escape_whitespaces:
        raise CheckpointError(str(file), "it treats spaces in another way than ChatGLM2's", _FIX)
    tokens = [piece.piece for piece in model.pieces] + [SPELLINGS.get(token, token) for token in SPECIAL_TOKENS]
    scores = [piece.score for piece in model.pieces]
    types = [piece.type for piece in model.pieces] + [int(TokenType.CONTROL)] * len(SPECIAL_TOKENS)
    if size < len(tokens):
        raise CheckpointError(str(file), f"{len(tokens):,} tokens, and the embedding has {size:,} rows", _FIX)
    padding = range(len(tokens), size)
    tokens += [f"[PAD{number}]" for number in padding]
    vocabulary = Vocabulary(
        tuple(tokens),
        tuple(scores + [0.0] * (size - len(scores))),
        tuple(types + [int(TokenType.UNUSED)] * len(padding)),
    )
    check_vocabulary(vocabulary, file)
    return vocabulary


def check_vocabulary(vocabulary: Vocabulary, file: Path) -> None:
    """Check that texts are unique, and that merging pieces of a text leads to normal tokens only.

    Args:
        vocabulary: to check.
        file: for the error.

    Raises:
        CheckpointError: a text occurs twice, or a token that is no text can be reached; the error names it.
    """
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    if len(ids) < len(vocabulary.tokens):
        twice = next(token for index, token in enumerate(vocabulary.tokens) if ids[token] != index)
        raise CheckpointError(str(file), f"two tokens have the text {twice!r}", _FIX)
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind != TokenType.NORMAL and is_reachable(token, ids):
            raise CheckpointError(str(file), f"llama.cpp would take the text {token!r} for a special token", _FIX)


def is_reachable(token: str, ids: Mapping[str, int]) -> bool:
    """Whether llama.cpp could merge the characters of a text, pair by pair, into the token of that text.

    Args:
        token: its text.
        ids: of all tokens, by text.
    """

    @cache
    def formed(text: str) -> bool:
        return len(text) == 1 or (
            text in ids and any(formed(text[:cut]) and formed(text[cut:]) for cut in range(1, len(text)))
        )

    return formed(token)
