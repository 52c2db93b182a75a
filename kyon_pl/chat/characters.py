"""Whole characters out of tokens, and text that cannot disturb a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Protocol

HALF = "\ufffd"  # what the bytes of an unfinished character decode to
_TURNS_TEXT_ROUND = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of some ids."""


class Pieces:
    """Tells the text of tokens that come one by one; of a character in several tokens, not before its last.

    Args:
        tokenizer: decodes.
        on_text: told each piece of text.

    Attributes:
        text: what has been told.
    """

    def __init__(self, tokenizer: Decoder, on_text: Callable[[str], object]) -> None:
        self.tokenizer = tokenizer
        self.on_text = on_text
        self.token_ids: list[int] = []
        self.text = ""

    def put(self, token: int) -> None:
        """Take one more token."""
        self.token_ids.append(token)
        self._tell(self._decoded().rstrip(HALF))

    def end(self) -> None:
        """Tell what is left: half a character, if the reply ends in one."""
        self._tell(self._decoded())

    def _decoded(self) -> str:
        return self.tokenizer.decode(self.token_ids, skip_special_tokens=True)

    def _tell(self, text: str) -> None:
        if len(text) > len(self.text):
            self.on_text(text[len(self.text) :])
            self.text = text


def harmless(text: str) -> str:
    """A text without what moves a cursor, changes colours or turns the direction of reading round.

    Line ends and tabs stay; of the rest of Unicode's control characters each becomes `�`.
    """
    return "".join(
        character
        if character in "\n\t"
        or (unicodedata.category(character) not in ("Cc", "Cs") and character not in _TURNS_TEXT_ROUND)
        else HALF
        for character in text
    )
