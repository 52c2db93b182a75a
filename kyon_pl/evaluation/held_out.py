"""A held-out question and the replies to it: a row of `held_out_replies.jsonl`, and the same for a reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kyon_pl.evaluation.markdown import plain, table

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
