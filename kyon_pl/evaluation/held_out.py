"""Replies to held-out questions, formatted as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

REPLIES = "held_out_replies.jsonl"
# markup in Markdown (GitHub's too) and HTML, except dots between digits and dashes inside words
_MARKUP = re.compile(r"[!#$&()*+<>@\[\\\]`{|}~]|:(?=[/\w+-])|(?<!\d)\.|\.(?!\d)|(?<!\w)[_-]|[_-](?!\w)")


def exchange(row: Mapping[str, Any], replies: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """A question with a table of its reference, the base's reply and other replies, as Markdown.

    Args:
        row: a row of `held_out_replies.jsonl`.
        replies: pairs of a label and a reply.
    """
    base = [["base", row["base"]]] if row["base"] is not None else []
    labelled = [[label, reply["reply"] + ("" if reply["stopped"] else " […]")] for label, reply in replies]
    rows = [["reference", row["reference"]], *base, *labelled]
    return f"{escape_markdown(question(row))}\n\n" + table(["", "reply"], rows)


def question(row: Mapping[str, Any]) -> str:
    """The last segment of a row's prompt on one line, or the row's number if the row came as ids."""
    return " ".join(row["prompt"].rpartition("###")[2].split()) or f"row {row['row']}"


class Code(str):
    """A name of ours, such as a setting, that is shown as code and so needs no escaping."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are escaped, the head is not."""
    cells = ([f"`{cell}`" if isinstance(cell, Code) else escape_markdown(cell) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def block(text: str) -> str:
    """A code block. It is indented, because no line of the text can end an indented block."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def escape_markdown(text: str) -> str:
    """The text on one line that renders literally: line ends as ↵, unprintable characters as �, markup as entities."""
    line = " ↵ ".join(text.splitlines())
    printable = "".join(character if character.isprintable() else "�" for character in line)
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", printable)
