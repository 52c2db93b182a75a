"""`tokenizer.model` and the special tokens behind it, and a tokenizer for programs that load no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from kyon_pl.errors import CheckpointError, DataError

# Their ids follow the pieces of tokenizer.model in this order: 64789 to 64793 for 6B.
SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
CONTROL_TOKENS = ("<unk>", "<s>", "</s>")
EOS_TOKEN_ID = CONTROL_TOKENS.index("</s>")


def read_pieces(vocab_file: str | Path | None, where: str) -> SentencePieceProcessor:
    """Read a `tokenizer.model`.

    Args:
        vocab_file: its path; None: there is none.
        where: the tokenizer's folder or name, for the error.

    Raises:
        CheckpointError: it is missing, not a SentencePiece model, or of another layout than ChatGLM2's.
    """
    fix = "Give a folder or repository that holds ChatGLM2's tokenizer.model."
    if vocab_file is None or not Path(vocab_file).is_file():
        raise CheckpointError(where=where, found="no tokenizer.model", fix=fix)
    try:
        pieces = SentencePieceProcessor(model_file=str(vocab_file))
    except (RuntimeError, OSError):
        raise CheckpointError(where=str(vocab_file), found="not a SentencePiece model", fix=fix) from None
    layout = [pieces.id_to_piece(i) for i in range(len(CONTROL_TOKENS))]
    if layout != [*CONTROL_TOKENS] or any(pieces.piece_to_id(token) != 0 for token in SPECIAL_TOKENS):
        found = f"a vocabulary that begins with {layout}, or holds one of {', '.join(SPECIAL_TOKENS)} as a piece"
        raise CheckpointError(where=str(vocab_file), found=found, fix=fix)
    return pieces


def encode_pieces(pieces: SentencePieceProcessor, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts, without special tokens, which are never parsed from text.

    Raises:
        DataError: a text holds a lone surrogate, which UTF-8 cannot encode.
    """
    try:
        encoded: list[list[int]] = pieces.encode(list(texts), out_type=int)
    except (RuntimeError, TypeError, UnicodeEncodeError):  # depends on SentencePiece's version
        found = f"a lone surrogate in {next(iter(texts), '')!r:.80}"
        raise DataError("text to encode", found, "Save the source again as UTF-8.") from None
    return encoded


class PieceTokenizer:
    """The ids and texts of `ChatGLMTokenizer`, without transformers.

    Args:
        vocab_file: path of `tokenizer.model`.

    Attributes:
        eos_token_id: id of the end of sequence.

    Raises:
        CheckpointError: as for `read_pieces`.
    """

    eos_token_id = EOS_TOKEN_ID

    def __init__(self, vocab_file: Path) -> None:
        self._pieces = read_pieces(vocab_file, str(vocab_file.parent))
        count = self._pieces.get_piece_size()
        special = {token: count + index for index, token in enumerate(SPECIAL_TOKENS)}
        self._prefix = [special["[gMASK]"], special["sop"]]

    def __call__(
        self, text: str | list[str], *, add_special_tokens: bool = True, return_attention_mask: bool = False
    ) -> dict[str, Any]:
        """Return `input_ids`, the ids of a text or of each text; `add_special_tokens` puts `[gMASK] sop` in front.

        Args:
            text: one or several.
            add_special_tokens: whether to add the prefix.
            return_attention_mask: must be false; there is no padding.

        Raises:
            DataError: as for `encode_pieces`.
        """
        assert not return_attention_mask
        prefix = self._prefix if add_special_tokens else []
        encoded = encode_pieces(self._pieces, [text] if isinstance(text, str) else text)
        ids = [[*prefix, *one] for one in encoded]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Token ids to text. Special ids and those of the padded embedding are dropped, as published.

        Args:
            token_ids: of one text.
            skip_special_tokens: without effect, as in `ChatGLMTokenizer`.
        """
        size = self._pieces.get_piece_size()
        # an empty piece in their place: a special token still separates bytes of a character
        kept = (self._pieces.id_to_piece(i) if len(CONTROL_TOKENS) <= i < size else "" for i in token_ids)
        return str(self._pieces.decode_pieces(list(kept)))
