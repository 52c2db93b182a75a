"""Replies to held-out questions, formatted as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

REPLIES, SCORES = "held_out_replies.jsonl", "scores.md"
# what Markdown (CommonMark, GitHub's and TensorBoard's) takes for markup, only where it does: dots, dashes and colons
# of ordinary text stay as they are
_BACKSLASHED = r"[\\`*\[\]]|(?<!\w)_|_(?!\w)"
_AS_ENTITY = (
    *(
        r"[<|$~]",
        r"&(?=#|\w)",
        r":(?=//|[a-z+-][\w+-]*:)",
        r"@(?=\w)",
    ),  # tags, cells, formulas, entities, addresses, emoji
    r"(?<=\bwww)\.",
    *(r"^[#>]", r"^[+-](?=\s|$)", r"^[=-](?=[=\s-]*$)"),  # how blocks begin
    *(rf"(?<=^{digits})[.)](?=\s|$)" for digits in (r"\d", r"\d\d", r"\d\d\d")),
)
_MARKUP = re.compile(f"(?P<backslashed>{_BACKSLASHED})|{'|'.join(_AS_ENTITY)}", re.IGNORECASE)


def exchange(row: Mapping[str, Any], replies: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """A question with a table of its reference, the base's reply and other replies, as Markdown.

    Args:
        row: a row of `held_out_replies.jsonl`.
        replies: pairs of a label and a reply.
    """
    base = [["base", row["base"]]] if row["base"] is not None else []
    labelled = [[label, ended(reply)] for label, reply in replies]
    rows = [["reference", row["reference"]], *base, *labelled]
    return f"{escape_markdown(question(row))}\n\n" + table(["", "reply"], rows)


def ended(reply: Mapping[str, Any]) -> str:
    """A reply; with an ellipsis if the model did not end it itself."""
    return str(reply["reply"]) + ("" if reply["stopped"] else " […]")


def question(row: Mapping[str, Any]) -> str:
    """The last segment of a row's prompt on one line, or the row's number if the row came as ids."""
    return " ".join(row["prompt"].rpartition("###")[2].split()) or f"row {row['row']}"


class Code(str):
    """A name or value that is shown as code."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are escaped, the head is not."""
    cells = ([_code(cell) if isinstance(cell, Code) else escape_markdown(cell) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(cell: str) -> str:
    """Code, except what could end a span of code or a cell."""
    plain = cell.isprintable() and not {"`", "|", "\\"} & {*cell} and cell == cell.strip()
    return f"`{cell}`" if cell and plain else escape_markdown(cell)


def block(text: str) -> str:
    """A code block. It is indented, because no line of the text can end an indented block."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def escape_markdown(text: str) -> str:
    """The text on one line that renders literally: line ends as ↵, unprintable characters as �, markup escaped."""
    line = " ↵ ".join(text.splitlines())
    printable = "".join(character if character.isprintable() else "�" for character in line)
    return _MARKUP.sub(_escaped, printable)


def _escaped(match: re.Match[str]) -> str:
    return f"\\{match[0]}" if match["backslashed"] else f"&#{ord(match[0])};"
