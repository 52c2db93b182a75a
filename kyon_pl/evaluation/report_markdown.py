"""The parts of a report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from kyon_pl.evaluation.held_out import block, escape_markdown, table
from kyon_pl.evaluation.parts import Bullets, Exchange, Facts, Figure, Folded, Heading, Paragraph, Part, Quote, Table

MARK = "<!-- kyon-pl report -->"


def markdown(parts: Iterable[Part], question: str) -> str:
    """The text of the file.

    Args:
        parts: of the report.
        question: heading of the questions in tables of replies.
    """
    return "\n\n".join([*_blocks(parts, question), MARK]) + "\n"


def _blocks(parts: Iterable[Part], question: str) -> Iterator[str]:
    for kind, group in groupby(parts, type):
        if kind is Exchange:
            yield _exchanges([part for part in group if isinstance(part, Exchange)], question)
        else:
            yield from map(_block, group)


def _block(part: Part) -> str:
    match part:
        case Heading():
            return f"{'#' * part.level} {escape_markdown(part.text)}"
        case Paragraph():
            return escape_markdown(part.text)
        case Bullets():
            return "\n".join(f"- {escape_markdown(item)}" for item in part.items)
        case Facts():
            return table(["", ""], part.rows)
        case Table():
            return table([escape_markdown(cell) for cell in part.head], part.rows)
        case Quote():
            return block(part.text)
        case Folded():
            return _block(part.table)
        case Figure():
            return f"![{escape_markdown(part.title)}]({part.name}.png)"
    raise TypeError(part)


def _exchanges(exchanges: Sequence[Exchange], question: str) -> str:
    """Questions with the same columns are one table."""
    tables = []
    for names, group in groupby(exchanges, lambda one: [name for name, _ in one.replies]):
        rows = list(group)
        head = [question, *names, rows[0].reference[0]]
        cells = [[row.question, *(reply for _, reply in row.replies), row.reference[1]] for row in rows]
        tables.append(table([escape_markdown(cell) for cell in head], cells))
    return "\n\n".join(tables)
