"""Training rows as text, with trained, masked and special tokens marked."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kyon_pl.batch import Batch
from kyon_pl.data.batches.plan import PACKED
from kyon_pl.data.dialogue_data import DialogueData
from kyon_pl.data.encoding.encode import load_tokenizer
from kyon_pl.logs import replace_control_characters

if TYPE_CHECKING:
    from kyon_pl.chatglm2 import ChatGLMTokenizer

_SPACE = "▁"
_SIGNS = {"\n": "↵", "\t": "⇥"}
_FIRST_LONE_BYTE = 0xDC00  # the code point that Python's `surrogateescape` adds to an invalid byte


@dataclass(frozen=True)
class Token:
    """A token id as text.

    Attributes:
        text: the piece, with `▁` for a space; the name of a special token; one character for a byte.
        special: whether no text is encoded to this id: `[gMASK]`, `sop`, `</s>`, an id without a piece.
        byte: whether it is one byte of a character that is not in the vocabulary.
    """

    text: str
    special: bool = False
    byte: bool = False


@dataclass(frozen=True)
class Span:
    """A run of text of one kind.

    Attributes:
        text: the text to show.
        trained: whether its tokens are trained.
        special: whether it is the name of a token or character, and not text.
    """

    text: str
    trained: bool
    special: bool = False


@dataclass(frozen=True)
class Paint:
    """Formats spans, with colours for a terminal or with brackets.

    Attributes:
        colour: True: trained text is green, masked text grey, special tokens are reversed. False: trained text is in
            `⟦…⟧` and special tokens are in `‹…›`.
    """

    colour: bool

    def text(self, spans: Sequence[Span]) -> str:
        """Format the spans of a row."""
        if self.colour:
            return "".join(
                self._coded(span.text, ("1;32" if span.trained else "38;5;245") + (";7" if span.special else ""))
                for span in spans
            )
        parts = []
        for trained, group in groupby(spans, key=lambda span: span.trained):
            shown = "".join(f"‹{span.text}›" if span.special else span.text for span in group)
            parts.append(f"⟦{shown}⟧" if trained else shown)
        return "".join(parts)

    def heading(self, text: str) -> str:
        """Format a heading."""
        return self._coded(text, "1;36") if self.colour else text

    def _coded(self, text: str, code: str) -> str:
        """Colour text; each line has its own codes, because pagers reset colours at the end of a line."""
        return "\n".join(f"\x1b[{code}m{line}\x1b[0m" if line else "" for line in text.split("\n"))


def name_tokens(ids: Sequence[int], tokenizer: ChatGLMTokenizer | None) -> list[Token]:
    """Convert ids to tokens; without a tokenizer, the tokens are the numbers."""
    if tokenizer is None:
        return [Token(f"{_SPACE}{i}") for i in ids]
    specials = {*tokenizer.all_special_tokens, "<s>"}
    pieces: list[str] = tokenizer.convert_ids_to_tokens(list(ids))
    return [_name(i, piece, piece in specials) for i, piece in zip(ids, pieces, strict=True)]


def _name(token_id: int, piece: str, special: bool) -> Token:
    if piece.startswith("<0x") and len(piece) == len("<0x00>"):
        return Token(bytes([int(piece[3:5], 16)]).decode("utf-8", "surrogateescape"), byte=True)
    return Token(piece or f"id {token_id}", special=special or not piece)


def spans(tokens: Sequence[Token], trained: Sequence[bool]) -> Iterator[Span]:
    """Group tokens into runs of one kind.

    Bytes are decoded to characters, invalid ones shown by number. `▁` becomes a space, except the one that
    SentencePiece puts before each segment.

    Args:
        tokens: the tokens of a row.
        trained: for each token, whether it has a label.
    """
    marked = zip(tokens, trained, strict=True)
    segment: bool | None = None  # whether the current segment is trained; None: not in a segment
    for (special, byte, learned), group in groupby(marked, key=lambda item: (item[0].special, item[0].byte, item[1])):
        texts = [token.text for token, _ in group]
        if special:
            yield from (Span(text, learned, special=True) for text in texts)
        elif byte:
            decoded = "".join(texts).encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
            yield from _printable(decoded, learned)
        else:
            text, prefix = "".join(texts), 0 if segment is learned else 1
            yield from _printable(text[:prefix] + text[prefix:].replace(_SPACE, " "), learned)
        segment = None if special else learned


def _printable(text: str, trained: bool) -> Iterator[Span]:
    """Replace invisible and control characters with their names; a newline also starts a new line."""
    for printable, group in groupby(text, key=lambda c: c.isprintable() or unicodedata.category(c) == "Zs"):
        characters = "".join(group)
        if printable:
            yield Span(characters, trained)
            continue
        for character in characters:
            yield Span(_character_name(character), trained, special=True)
            if character == "\n":
                yield Span("\n", trained)


def _character_name(character: str) -> str:
    number = ord(character)
    if _FIRST_LONE_BYTE <= number < _FIRST_LONE_BYTE + 256:
        return f"0x{number - _FIRST_LONE_BYTE:02X}"
    return _SIGNS.get(character, f"U+{number:04X}")


def rows_text(data: DialogueData, rows: int) -> str:
    """Return the first rows without colours, for a logger; `data` is loaded and planned."""
    return "\n".join(row_lines(data, rows, Paint(colour=False)))


def row_lines(data: DialogueData, rows: int, paint: Paint) -> Iterator[str]:
    """Yield a heading and the text of the first rows of the first epoch; `data` is loaded and planned."""
    tokenizer = load_tokenizer(data.tokenizer, data.tokenizer_revision)
    for row in islice(_shown_rows(data), rows):
        yield paint.heading(replace_control_characters(row.heading))
        tokens = name_tokens(row.ids.tolist(), tokenizer)
        shown = list(spans(tokens, row.trained.tolist()))
        yield paint.text(shown + ([Span(f"pad × {row.pads:,}", trained=False, special=True)] if row.pads else []))
        yield ""


class _ShownRow(NamedTuple):
    heading: str
    ids: Tensor  # (tokens,)
    trained: Tensor  # (tokens,), bool
    pads: int  # number of padding tokens after the row


def _shown_rows(data: DialogueData) -> Iterator[_ShownRow]:
    """Yield the rows of the batches of the first epoch."""
    for number, batch in enumerate(data.planned_batches(), start=1):
        name = f"{'pack' if data.batching in PACKED else 'batch'} {number:,}"
        ids, trained = batch.input_ids.flatten(), _trained_tokens(batch)
        if batch.key_index is not None:
            ids = ids[batch.key_index]  # the tokens of all rows, shared ones repeated
        for index, (start, end, pads) in enumerate(_bounds(data, batch)):
            count = int(trained[start:end].sum())
            heading = (
                f"── {name}, row {index + 1} of {len(batch.row_numbers)}, "
                + (f"tokens {start:,}–{end - 1:,}, " if batch.cu_seqlens is not None else "")
                + _shared(batch, index)
                + f"{end - start - count:,} masked + {count:,} trained · {_location(data, batch.row_numbers[index])}"
            )
            yield _ShownRow(heading, ids[start:end], trained[start:end], pads)


def _shared(batch: Batch, index: int) -> str:
    """Say how many tokens a row shares with the row before it; nothing if it shares none."""
    if batch.cu_seqlens is None or batch.cu_seqlens_k is None:
        return ""
    shared = int(batch.cu_seqlens_k.diff()[index] - batch.cu_seqlens.diff()[index])
    return f"{shared:,} shared with the row before, " if shared else ""


def _trained_tokens(batch: Batch) -> Tensor:
    """Return (labels,), bool: the trained tokens, from the positions that the loss uses."""
    assert batch.trained_positions is not None
    trained = torch.zeros(batch.labels.numel(), dtype=torch.bool)
    trained[batch.trained_positions + 1] = True
    return trained


def _bounds(data: DialogueData, batch: Batch) -> Iterator[tuple[int, int, int]]:
    """Yield start and end of each row in the flattened labels, and the number of padding tokens after it."""
    count = len(batch.row_numbers)
    row_bounds = batch.cu_seqlens if batch.cu_seqlens_k is None else batch.cu_seqlens_k
    if row_bounds is not None:
        bounds = row_bounds.tolist()
        for index in range(count):
            rest = bounds[-1] - bounds[count] if index == count - 1 else 0
            yield bounds[index], bounds[index + 1], rest
        return
    width = batch.input_ids.shape[1]
    lengths = data.rows["train"].tokens[list(batch.row_numbers)].tolist()
    for index, length in enumerate(lengths):
        yield index * width, index * width + length, width - length


def _location(data: DialogueData, row_number: int) -> str:
    """Return file and line of a training row, and the number of tokens that were removed from its context."""
    rows = data.rows["train"]
    cut = int(rows.table.cut_tokens[rows.numbers[row_number]])
    return Path(data.place(row_number)).name + (f" · {cut:,} tokens of its context removed" if cut else "")
