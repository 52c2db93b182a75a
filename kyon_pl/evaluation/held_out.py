"""Replies to held-out questions, and text as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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


REPLIES = "held_out_replies.jsonl"


def question(row: Mapping[str, Any]) -> str:
    """The last segment of a row's prompt, on one line; of a row that came as ids, its number."""
    return " ".join(row["prompt"].rpartition("###")[2].split()) or f"row {row['row']}"


def exchange(row: Mapping[str, Any], replies: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """The question, its reference, what the base says, and replies, as Markdown.

    Args:
        row: of the question.
        replies: each with what stands before it.
    """
    base = [["base", row["base"]]] if row["base"] is not None else []
    said = [[name, reply["reply"] + ("" if reply["stopped"] else " […]")] for name, reply in replies]
    return f"{plain(question(row))}\n\n" + table(["", "reply"], [["reference", row["reference"]], *base, *said])
