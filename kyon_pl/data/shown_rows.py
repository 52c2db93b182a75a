"""Training rows as text: which tokens are trained, which are masked, and which are special."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kyon_pl.batch import Batch
from kyon_pl.data.dialogue_data import DialogueData
from kyon_pl.data.encoding.encode import load_tokenizer

if TYPE_CHECKING:
    from kyon_pl.chatglm2 import ChatGLMTokenizer

_SPACE = "▁"
_SIGNS = {"\n": "↵", "\t": "⇥"}
_FIRST_LONE_BYTE = 0xDC00  # where Python's `surrogateescape` puts a byte that belongs to no character


@dataclass(frozen=True)
class Token:
    """One id.

    Attributes:
        text: its piece, where `▁` stands for a space; the name of a special token; one character for a byte.
        special: no text is encoded to it: `[gMASK]`, `sop`, `</s>`, an id without a piece.
        byte: it is one byte of a character that the vocabulary does not have.
    """

    text: str
    special: bool = False
    byte: bool = False


@dataclass(frozen=True)
class Span:
    """A run of text of one kind.

    Attributes:
        text: what to show.
        trained: whether the model learns to predict it.
        special: whether it is the name of something and not text.
    """

    text: str
    trained: bool
    special: bool = False


@dataclass(frozen=True)
class Paint:
    """Text with its marks: colours in a terminal, brackets elsewhere.

    Attributes:
        colour: trained text is green, masked text grey, special tokens are reversed. Without: trained text stands in
            `⟦…⟧` and special tokens in `‹…›`.
    """

    colour: bool

    def text(self, spans: Sequence[Span]) -> str:
        """Spans of a row, joined."""
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
        """A line that is no part of the rows."""
        return self._coded(text, "1;36") if self.colour else text

    def _coded(self, text: str, code: str) -> str:
        """The code is given anew in each line, for pagers that forget it at a line's end."""
        return "\n".join(f"\x1b[{code}m{line}\x1b[0m" if line else "" for line in text.split("\n"))


def name_tokens(ids: Sequence[int], tokenizer: ChatGLMTokenizer | None) -> list[Token]:
    """The tokens of ids; without a tokenizer the ids themselves, as numbers."""
    if tokenizer is None:
        return [Token(f"{_SPACE}{i}") for i in ids]
    specials = {*tokenizer.all_special_tokens, "<s>"}
    return [_name(i, piece, piece in specials) for i, piece in zip(ids, _pieces(ids, tokenizer), strict=True)]


def _pieces(ids: Sequence[int], tokenizer: ChatGLMTokenizer) -> list[str]:
    pieces: list[str] = tokenizer.convert_ids_to_tokens(list(ids))
    return pieces


def _name(token_id: int, piece: str, special: bool) -> Token:
    if piece.startswith("<0x") and len(piece) == len("<0x00>"):
        return Token(bytes([int(piece[3:5], 16)]).decode("utf-8", "surrogateescape"), byte=True)
    return Token(piece or f"id {token_id}", special=special or not piece)


def spans(tokens: Sequence[Token], trained: Sequence[bool]) -> Iterator[Span]:
    """Runs of text of one kind. Bytes that make up characters are shown as these, others by their numbers.

    Spaces are shown as spaces, but for the `▁` that SentencePiece puts in front of each segment.

    Args:
        tokens: of a row.
        trained: for each whether it carries a label.
    """
    marked = zip(tokens, trained, strict=True)
    inside: bool | None = None  # a segment, and whether it is trained
    for (special, byte, learned), group in groupby(marked, key=lambda item: (item[0].special, item[0].byte, item[1])):
        texts = [token.text for token, _ in group]
        if special:
            yield from (Span(text, learned, special=True) for text in texts)
        elif byte:
            yield from _printable(_joined_bytes(texts), learned)
        else:
            text, prefix = "".join(texts), 0 if inside is learned else 1
            yield from _printable(text[:prefix] + text[prefix:].replace(_SPACE, " "), learned)
        inside = None if special else learned


def _joined_bytes(texts: Sequence[str]) -> str:
    return "".join(texts).encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def _printable(text: str, trained: bool) -> Iterator[Span]:
    """Text with what cannot be seen, or would steer the terminal, given by name; a line end also ends the line."""
    for shown, group in groupby(text, key=lambda c: c.isprintable() or unicodedata.category(c) == "Zs"):
        characters = "".join(group)
        if shown:
            yield Span(characters, trained)
            continue
        for character in characters:
            yield Span(_sign(character), trained, special=True)
            if character == "\n":
                yield Span("\n", trained)


def _sign(character: str) -> str:
    number = ord(character)
    if _FIRST_LONE_BYTE <= number < _FIRST_LONE_BYTE + 256:
        return f"0x{number - _FIRST_LONE_BYTE:02X}"
    return _SIGNS.get(character, f"U+{number:04X}")


def rows_text(data: DialogueData, rows: int) -> str:
    """The first rows without colours, for a logger; `data` is set up."""
    return "\n".join(row_lines(data, rows, Paint(colour=False)))


def row_lines(data: DialogueData, rows: int, paint: Paint) -> Iterator[str]:
    """The first rows of the first epoch, a heading and the painted text of each; `data` is loaded and planned."""
    tokenizer = load_tokenizer(data.tokenizer, data.tokenizer_revision)
    for row in islice(_shown_rows(data), rows):
        yield paint.heading(row.heading)
        tokens = name_tokens(row.ids.tolist(), tokenizer)
        shown = list(spans(tokens, row.trained.tolist()))
        yield paint.text(shown + ([Span(f"pad × {row.pads:,}", trained=False, special=True)] if row.pads else []))
        yield ""


@dataclass(frozen=True)
class _ShownRow:
    """A row as it stands in a batch.

    Attributes:
        ids: (tokens,).
        trained: (tokens,), bool, whether the loss counts how well it is predicted.
        pads: the padding behind it, in tokens.
    """

    heading: str
    ids: Tensor
    trained: Tensor
    pads: int


def _shown_rows(data: DialogueData) -> Iterator[_ShownRow]:
    """Row by row through the batches of the first epoch."""
    for number, batch in enumerate(data.planned_batches(), start=1):
        name = f"{'pack' if data.batching == 'packed' else 'batch'} {number:,}"
        ids, trained = batch.input_ids.flatten(), _trained(batch)
        for place, (start, end, pads) in enumerate(_bounds(data, batch)):
            count = int(trained[start:end].sum())
            heading = (
                f"── {name}, row {place + 1} of {len(batch.row_numbers)}, "
                + (f"tokens {start:,}–{end - 1:,}, " if batch.cu_seqlens is not None else "")
                + f"{end - start - count:,} masked + {count:,} trained · {_where(data, batch.row_numbers[place])}"
            )
            yield _ShownRow(heading, ids[start:end], trained[start:end], pads)


def _trained(batch: Batch) -> Tensor:
    """(R * T,), bool: the tokens that the loss is computed at, as it is told them."""
    assert batch.trained_positions is not None
    trained = torch.zeros(batch.input_ids.numel(), dtype=torch.bool)
    trained[batch.trained_positions + 1] = True
    return trained


def _bounds(data: DialogueData, batch: Batch) -> Iterator[tuple[int, int, int]]:
    """Start and end of each row among all tokens of the batch, and the padding behind it."""
    count = len(batch.row_numbers)
    if batch.cu_seqlens is not None:
        bounds = batch.cu_seqlens.tolist()
        for place in range(count):
            rest = bounds[-1] - bounds[count] if place == count - 1 else 0
            yield bounds[place], bounds[place + 1], rest
        return
    width = batch.input_ids.shape[1]
    lengths = data.rows["train"].tokens[list(batch.row_numbers)].tolist()
    for place, length in enumerate(lengths):
        yield place * width, place * width + length, width - length


def _where(data: DialogueData, place: int) -> str:
    """File and line of a training row, and what was left out of it."""
    rows = data.rows["train"]
    number = int(rows.numbers[place])
    cut = int(rows.table.cut_tokens[number])
    left_out = f" · {cut:,} tokens of its context left out" if cut else ""
    return f"{Path(rows.table.rows.place(number)).name}{left_out}"
