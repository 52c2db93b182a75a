"""Token ids as a person can read them: what is trained, what is masked, and what no text can spell."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

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
