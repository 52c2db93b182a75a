"""`speakers.csv`: who says what in a novel, written to be corrected by hand and read again."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kyon_pl.data.reading.tabular import csv_rows
from kyon_pl.errors import DataError
from kyon_pl.roles.importing.found import check_size, tidy_name
from kyon_pl.roles.importing.novels import Speech

SPEAKER_LIST = "speakers.csv"
COLUMNS = ("line", "speaker", "certainty", "words")


def speaker_list(speeches: Sequence[Speech]) -> str:
    """The text of the file, with a byte order mark, by which Excel knows UTF-8."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    writer.writerows((speech.line, speech.speaker, speech.certainty, speech.words) for speech in speeches)
    return f"\ufeff{file.getvalue()}"


def corrected(path: Path, speeches: Sequence[Speech]) -> tuple[list[Speech], int]:
    """Speeches with the speakers of a corrected file; those that are not in it, or have no speaker there, are left out.

    Args:
        path: the file.
        speeches: as they are found in the same text.

    Returns:
        The speeches that stay, and the number of changed speakers.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is no such file, or has words that the text does not have on that line.
    """
    check_size(path)
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for number, row in csv_rows(path):
        if not isinstance(row, dict) or not {*COLUMNS} <= {*row}:
            found = f"a row that is broken, or without one of the columns {', '.join(COLUMNS)}"
            raise DataError(f"{path}, line {number}", found, "Change only the column 'speaker' of the file.")
        line, speaker, words = (str(row[column] or "").strip() for column in ("line", "speaker", "words"))
        rows[line, words].append(tidy_name(speaker))
    kept, changed = [], 0
    for speech in speeches:
        speakers = rows.get((str(speech.line), speech.words.strip()))
        name = speakers.pop(0) if speakers else ""
        if not name:
            continue
        changed += name != speech.speaker
        kept.append(speech if name == speech.speaker else replace(speech, speaker=name, certainty="corrected"))
    if unknown := next((key for key, speakers in rows.items() if speakers), None):
        found = f"the text says nothing like {unknown[1][:40]!r} on line {unknown[0]}"
        raise DataError(str(path), found, "Use the file that was written for this text, and change only 'speaker'.")
    return kept, changed
