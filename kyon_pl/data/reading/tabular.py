"""Reading tables of text cells: CSV with any of its usual delimiters."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

from kyon_pl.data.reading.json_files import first_duplicate
from kyon_pl.data.reading.text_files import NumberedRows, Unreadable, open_text, text_encoding
from kyon_pl.errors import DataError

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
"""The delimiters of a CSV that are recognized, by the columns that they give to its first line; and their names."""

_HEAD_CHARACTERS = 1 << 16
_CELL_CHARACTERS = 100_000_000  # csv's own limit of 131,072 refuses the file; too long a text is one bad row
_CSV_FIXES = {
    "field larger": f"A quote is not closed there, or a cell has more than {_CELL_CHARACTERS:,} characters.",
    "unexpected end": "Close the quote there: it is open up to the end of the file.",
    "expected after": (
        'Quote the whole cell there, and write a quote inside a quoted cell twice (`""`). '
        f"Cells are separated by one of {', '.join(DELIMITERS.values())}."
    ),
    "new-line character": "Quote the cell there: it has a line break.",
}
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*")  # Excel's own first line

NumberedCells = Iterator[tuple[int, list[str | None]]]
"""Pairs of a row's number, from 1, and its cells."""


def csv_rows(path: Path) -> NumberedRows:
    """Yield the rows of a CSV, all cells as text, so that a reply of `42` or `NA` is not converted.

    Args:
        path: the file.

    Raises:
        DataError: two columns have one name, or the quotes or the encoding are broken.
    """
    return table_rows(path, "line", _csv_cells(path))


def csv_delimiter(path: Path) -> str:
    """Return the delimiter that gives the first line the most columns; a line `sep=;` in front names it."""
    with open_text(path, errors="replace", newline="") as file:
        lines = file.read(_HEAD_CHARACTERS).lstrip("\r\n").splitlines(keepends=True)
    if lines and (named := _SEPARATOR_LINE.fullmatch(lines[0])):
        return named[1]
    return max(DELIMITERS, key=lambda delimiter: len(next(csv.reader(lines, delimiter=delimiter), [])))


def _csv_cells(path: Path) -> NumberedCells:
    """Yield the first line of each row, and its cells."""
    csv.field_size_limit(max(_CELL_CHARACTERS, csv.field_size_limit()))  # of the process, and only raised
    start = 0
    try:
        with open_text(path, newline="") as file:
            first = next(file, "")
            skipped = int(bool(_SEPARATOR_LINE.fullmatch(first)))
            rows = csv.reader(file if skipped else chain([first], file), delimiter=csv_delimiter(path), strict=True)
            for cells in rows:
                if cells:
                    yield start + skipped + 1, list(cells)
                start = rows.line_num
    except UnicodeDecodeError as error:
        found = f"not {text_encoding(path).removesuffix('-sig').upper()}: {error.reason}"
        fix = "Save it as UTF-8 (`CSV UTF-8` in Excel); GB18030 and UTF-16 are read, too."
        raise DataError(str(path), found, fix) from None
    except csv.Error as error:
        fix = next((fix for text, fix in _CSV_FIXES.items() if text in str(error)), "Correct the file there.")
        raise DataError(f"{path}, after line {start + skipped}", f"broken CSV: {error}", fix) from None


def table_rows(path: Path, unit: str, numbered_cells: NumberedCells) -> NumberedRows:
    """Yield cells as rows: the first row names the columns.

    Args:
        path: the file, for messages.
        unit: what is numbered, for messages.
        numbered_cells: the cells of each row that is not empty.

    Raises:
        DataError: two columns have one name.
    """
    number, header = next(numbered_cells, (0, []))
    names = [name or "" for name in header]
    if name := first_duplicate([name for name in names if name.strip()]):
        raise DataError(f"{path}, {unit} {number}", f"two columns are called {name!r}", "Rename one of them.")
    for number, cells in numbered_cells:
        fits = len(cells) <= len(names)
        yield number, dict(zip_longest(names, cells)) if fits else Unreadable("more cells than columns")
