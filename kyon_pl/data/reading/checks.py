"""Checks that a row can be used, and reasons why it cannot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from kyon_pl.data.reading.columns import IDS, ColumnNames, form_of
from kyon_pl.data.reading.forms import FORMS, to_conversation
from kyon_pl.data.reading.text_files import Unreadable
from kyon_pl.data.reading.texts import Unusable, excerpt, nothing_said, text_problem
from kyon_pl.data.reading.turns import unread_keys
from kyon_pl.data.split import dialogue_hash


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
    renamed = names.renamed(row)
    row = {renamed.get(column, column): value for column, value in row.items()} if renamed else row
    checked["form"] = form = form_of(row, names)
    try:
        if form == "token_ids":
            problem = _ids_problem(row["input_ids"], row["seq_len"])
            found = {name: row[name] for name in IDS}
        elif form in FORMS:
            problem = "" if FORMS[form].prompt in row else f"no {FORMS[form].prompt!r}"
            found = {} if problem else to_conversation(row, FORMS[form], names.target_required)
        else:
            problem = text_problem(row, names.context) or _target_problem(row, names)
            found = {"context": row.get(names.context), "target": row.get(names.target)}
    except Unusable as error:
        problem, found = str(error), {}
    for column, name in renamed.items():  # in the file's own words
        problem = problem.replace(f"{name!r}", f"{column!r}")
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
        read: Collection[str] = (*IDS, "dialogue")
    else:
        read = FORMS[form].columns if form in FORMS else (names.context, names.target, "dialogue")
    renamed, unread = names.renamed(row), set[str]()
    for column, value in row.items():
        name = renamed.get(column, column)
        if name not in read and value is not None:
            unread.add(column)
        elif form in FORMS and FORMS[form].reply is None and name == FORMS[form].prompt:
            unread |= unread_keys(row, column)
    return unread


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
