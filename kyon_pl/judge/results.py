"""The result of a comparison, in the terminal and as files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from kyon_pl.disk import write_atomically
from kyon_pl.evaluation.judged import COLUMNS, RESULT, Match, match_table
from kyon_pl.logs import replace_control_characters

FORMAT_VERSION = 1
PAGE = "result.md"


def write_result(folder: Path, matches: Sequence[Match], questions: int, winner: str = "") -> None:
    """Write a result as JSON and Markdown.

    Args:
        folder: of the judge in that of the comparison.
        matches: one, or all of a knockout.
        questions: number of questions.
        winner: of a knockout.

    Raises:
        OSError: a file cannot be written.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "judge": matches[0].judge,
        "questions": questions,
        "winner": winner,
        "matches": [{"first": one.first, "second": one.second, **one.rate.as_json()} for one in matches],
    }
    write_atomically(folder / RESULT, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    lines = [f"{questions} held-out questions", match_table(matches), *([f"Winner: {winner}"] if winner else [])]
    write_atomically(folder / PAGE, "\n\n".join(lines) + "\n")


def result_lines(matches: Sequence[Match]) -> Iterator[str]:
    """The comparisons as lines of a terminal, in columns."""
    rows = [list(COLUMNS), *(match.cells() for match in matches)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    for row in rows:
        names = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        counts = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        yield replace_control_characters("  ".join([*names, *counts]).rstrip())
