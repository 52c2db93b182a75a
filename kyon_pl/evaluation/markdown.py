"""Markdown around text that is data: nothing in it is rendered, neither as Markdown nor as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")


def plain(text: str) -> str:
    """One line that shows a text as it is: line ends as ↵, what cannot be seen as �, punctuation as HTML entities."""
    line = " ↵ ".join(text.splitlines())
    seen = "".join(character if character.isprintable() else "�" for character in line)
    return _PUNCTUATION.sub(lambda match: f"&#{ord(match[0])};", seen)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all cells are data."""
    lines = [head, ["---"] * len(head), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def block(text: str) -> str:
    """Lines as they are. The block is an indented one, since no line of it can end that."""
    return "\n".join(f"    {line}" for line in text.splitlines())
