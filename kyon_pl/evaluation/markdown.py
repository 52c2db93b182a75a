"""Markdown around text that is data: nothing in it is rendered, neither as Markdown nor as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# what Markdown, GitHub's too, or HTML can make something of; a dot in a number and a dash in a word it cannot
_MARKUP = re.compile(
    r"[!#$&()*+<>@\[\\\]`{|}~]|:(?=[/\w+-])|(?<!\d)\.|\.(?!\d)|(?<!\w)[_-]|[_-](?!\w)",
)


def plain(text: str) -> str:
    """One line that shows a text as it is: line ends as ↵, what cannot be seen as �, markup as HTML entities."""
    line = " ↵ ".join(text.splitlines())
    seen = "".join(character if character.isprintable() else "�" for character in line)
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", seen)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all cells are data."""
    lines = [head, ["---"] * len(head), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def block(text: str) -> str:
    """Lines as they are. The block is an indented one, since no line of it can end that."""
    return "\n".join(f"    {line}" for line in text.splitlines())
