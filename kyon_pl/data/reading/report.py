"""What was recognized in the files of a source, in one line for files that are alike."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from kyon_pl.data.reading.files import guesses
from kyon_pl.data.reading.forms import FORMS
from kyon_pl.data.reading.sources import Rows

_MOST_GUESSED_FILES = 100  # whose start is read again for the report
log = logging.getLogger("kyon_pl.data")


def report_forms(rows: Rows) -> None:
    """Log the form of the rows of each file, what was guessed about it, and, as a warning, columns that are not read.

    Nothing is logged of files of contexts and targets, or ids, that are read whole.

    Args:
        rows: the rows of a source.
    """
    unread = _unread_columns(rows)
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)  # remarks on forms, guesses and columns: files
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for index, (file, forms) in enumerate(zip(rows.files, _form_counts(rows), strict=True)):
        guessed = guesses(Path(file)) if index < _MOST_GUESSED_FILES and Path(file).is_file() else []
        columns = f"columns not read: {', '.join(sorted(unread[index]))}" if unread[index] else ""
        key: tuple[str, ...] = (*sorted(forms), *guessed, columns)
        if guessed or columns or forms.keys() & FORMS.keys():
            alike[key].append(file)
            counts[key] += forms
    for remarks, names in alike.items():
        name = Path(names[0]).name if Path(names[0]).is_file() else names[0]
        more = f" and {len(names) - 1:,} more files" if len(names) > 1 else ""
        said = ", ".join(f"{_said(form)}, {count:,} rows" for form, count in counts[remarks].most_common())
        line = "; ".join(filter(None, [said, *remarks[len(counts[remarks]) :]]))
        log.log(logging.WARNING if remarks[-1] else logging.INFO, "data: %s%s: %s", name, more, line)


def _said(form: str) -> str:
    return FORMS[form].said if form in FORMS else form.replace("_", " and ").replace("token and ids", "token ids")


def _form_counts(rows: Rows) -> list[Counter[str]]:
    """Count the rows of each form, for each file."""
    encoded = rows.dataset.data.column("form").combine_chunks().dictionary_encode()
    forms = encoded.dictionary.to_pylist()
    numbers = encoded.indices.to_numpy(zero_copy_only=False)
    files = np.asarray(rows.dataset.data.column("file"))
    files = np.unique(files, return_inverse=True)[1]
    counts = np.bincount(files * len(forms) + numbers, minlength=len(rows.files) * len(forms))
    per_file = counts.reshape(len(rows.files), len(forms)).tolist()
    return [Counter({form: n for form, n in zip(forms, found, strict=True) if n and form}) for found in per_file]


def _unread_columns(rows: Rows) -> list[set[str]]:
    """Return the columns that are not read, for each file."""
    found: list[set[str]] = [set() for _ in rows.files]
    first = rows.dataset.data.column("file")[0].as_py() if len(rows.dataset) else 0
    column = rows.dataset.data.column("unread")
    numbers = np.flatnonzero(np.asarray(pc.list_value_length(column)))
    for row in rows.dataset.select(numbers).select_columns(["file", "unread"]):
        found[row["file"] - first].update(row["unread"])
    return found
