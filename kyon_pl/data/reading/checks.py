"""Checks that a row can be used, and reasons why it cannot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kyon_pl.data.reading.forms import FORM_COLUMNS, FORMS, FormName, Unusable, recognize, to_conversation, unread_keys
from kyon_pl.data.reading.no_rows import import_command, kind_of_columns
from kyon_pl.data.reading.tabular import DELIMITERS
from kyon_pl.data.reading.text_files import Unreadable, file_format
from kyon_pl.data.reading.texts import excerpt, nothing_said, text_problem
from kyon_pl.data.split import dialogue_hash
from kyon_pl.errors import DataError

_TABLES = (".csv", ".tsv", ".xlsx")
_IDS = ("input_ids", "seq_len")


@dataclass(frozen=True)
class ColumnNames:
    """Names of the columns that are read.

    Attributes:
        context: column of the prompt.
        target: column of the reply.
        target_required: False for prompts to be answered, where a target is an optional reference.
        form: form of the rows; `auto`: recognized in each row.
    """

    context: str = "context"
    target: str = "target"
    target_required: bool = True
    form: FormName = "auto"

    @property
    def all(self) -> frozenset[str]:
        """All columns that can be needed."""
        return FORM_COLUMNS | {self.context, self.target, *_IDS}


def form_of(row: Mapping[str, Any], names: ColumnNames) -> str:
    """Return the form of a row: a name in `FORMS`, `context_target` or `token_ids`.

    A row without the columns of any form is one of `context_target`.

    Args:
        row: the row.
        names: the columns that are read.
    """
    if names.form != "auto":
        return names.form
    if all(row.get(name) is not None for name in _IDS):
        return "token_ids"
    context = row.get(names.context)
    if isinstance(context, str) and (row.get(names.target) is not None or not names.target_required):
        return "context_target"
    return recognize(row, names.target_required) or "context_target"


def check_columns(where: str, names: ColumnNames, found: set[str]) -> None:
    """Check that the columns exist: with a wrong name, every row would be a bad row.

    Args:
        where: the file or data set.
        names: the columns that are read.
        found: all columns of the first rows; if empty, the rows themselves are bad and nothing is checked.

    Raises:
        DataError: a column is missing, and the rows carry neither ids nor a form that is recognized; or it is a file
            for `kyon-pl import-role`.
    """
    form = form_of(dict.fromkeys(found, ""), names)
    if names.form == "auto" and form != "token_ids" and names.context not in found and (kind := kind_of_columns(found)):
        raise DataError(where, f"it is {kind}, and holds no rows", import_command(where))
    if form in FORMS:
        needed = [FORMS[form].prompt, FORMS[form].reply if names.target_required else None]
    else:
        needed = [names.context, names.target if names.target_required else None]
    missing = sorted({column for column in needed if column} - found)
    if not found or not missing or form == "token_ids":
        return
    columns = ", ".join(sorted(found))
    if len(found) == 1 and (delimiter := _delimiter_in(columns, names)):
        fix = f"It seems to be separated by {delimiter!r}: use one of {', '.join(DELIMITERS.values())}."
    elif names.form != "auto" and form in FORMS:
        fix = f"Set data.form to auto or another form: {form} has {' and '.join(filter(None, needed))}."
    else:
        fix = "Set data.context_column and data.target_column to the names of the prompt's and the reply's column." + (
            " The first row must be the names." if file_format(Path(where)) in _TABLES else ""
        )
    raise DataError(where, f"no column {missing[0]!r}; the columns are {columns}", fix)


def _delimiter_in(header: str, names: ColumnNames) -> str:
    """Return what stands between the two columns in a header that was read as one column; empty if it is not clear."""
    start, context, rest = header.partition(names.context)
    between, target, _ = rest.partition(names.target)
    return between.strip("\"' ") if context and target and not start.strip("\"'") and len(between) < 6 else ""


def check_row(row: Any, names: ColumnNames) -> dict[str, Any]:
    """Reduce a row to the columns that are used.

    Args:
        row: a row of any type, as read.
        names: the columns that are read.

    Returns:
        `context`, `target`, `messages`, `dialogue` (its hash), `input_ids`, `seq_len`; `form`, see `form_of`, empty if
        it is no row; and `problem`: why the row cannot be used, as kind, `: ` and details; empty if it can. A row with
        `input_ids` and `seq_len` is used unchanged. A row of a form in `FORMS` is a conversation: its last reply is
        the target, `messages` are those before, and `context` is their text.
    """
    checked: dict[str, Any] = {
        "context": "",
        "target": None,
        "messages": [],
        "dialogue": 0,
        "input_ids": [],
        "seq_len": 0,
        "form": "",
        "problem": "",
    }
    if isinstance(row, Unreadable):
        return checked | {"problem": row.problem}
    if isinstance(row, list) and row and isinstance(row[0], Mapping):  # a line that is a conversation
        row = {"messages": row}
    if not isinstance(row, Mapping):
        return checked | {"problem": f"not a row: {excerpt(row)}"}
    checked["form"] = form = form_of(row, names)
    try:
        if form == "token_ids":
            problem = _ids_problem(row["input_ids"], row["seq_len"])
            found = {name: row[name] for name in _IDS}
        elif form in FORMS:
            problem = "" if FORMS[form].prompt in row else f"no {FORMS[form].prompt!r}"
            found = {} if problem else to_conversation(row, FORMS[form], names.target_required)
        else:
            problem = text_problem(row, names.context) or _target_problem(row, names)
            found = {"context": row.get(names.context), "target": row.get(names.target)}
    except Unusable as error:
        problem, found = str(error), {}
    return checked | ({"problem": problem} if problem else {"dialogue": dialogue_hash(row.get("dialogue")), **found})


def unread_columns(row: Any, form: str, names: ColumnNames) -> set[str]:
    """Return the columns of a row that are not read although they have a value.

    Args:
        row: the row.
        form: its form, from `check_row`.
        names: the columns that are read.
    """
    if not form or not isinstance(row, Mapping):
        return set()
    if form == "token_ids":
        read: Collection[str] = (*_IDS, "dialogue")
    else:
        read = FORMS[form].columns if form in FORMS else (names.context, names.target, "dialogue")
    unread = {column for column, value in row.items() if column not in read and value is not None}
    return unread | unread_keys(row, FORMS[form]) if form in FORMS else unread


def _target_problem(row: Mapping[str, Any], names: ColumnNames) -> str:
    if not names.target_required and row.get(names.target) is None:
        return ""
    problem = text_problem(row, names.target)
    if not problem and names.target_required and nothing_said(row[names.target]):
        return f"nothing said in {names.target!r}: {excerpt(row[names.target])}"
    return problem


def _ids_problem(ids: Any, seq_len: Any) -> str:
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
        return f"no list of token ids in 'input_ids': {excerpt(ids)}"
    if type(seq_len) is not int or not 0 < seq_len < len(ids):
        return f"'seq_len' leaves nothing to train: {excerpt(seq_len)} of {len(ids)} ids"
    return ""
