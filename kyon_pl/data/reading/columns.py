"""The columns of a file: which are read, under which names, and what the file seems to be if they are missing."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kyon_pl.data.reading.forms import FORM_COLUMNS, FORMS, FormName, recognize
from kyon_pl.data.reading.tabular import DELIMITERS
from kyon_pl.data.reading.text_files import file_format
from kyon_pl.errors import DataError

IDS = ("input_ids", "seq_len")
"""The columns of rows that are encoded already."""

_CHINESE = {
    "上下文": "context",
    "系统": "system",
    "系统提示": "system",
    "系统提示词": "system",
    "历史": "history",
    "对话历史": "history",
    "指令": "instruction",
    "输入": "input",
    "输出": "output",
    "提示": "prompt",
    "提示词": "prompt",
    "问": "question",
    "提问": "question",
    "问题": "question",
    "答": "answer",
    "回答": "answer",
    "回复": "answer",
    "答案": "answer",
    "用户": "user",
    "助手": "assistant",
}
_TABLES = (".csv", ".tsv", ".xlsx")
_IMPORTED = (
    ("a character card", frozenset({"spec", "data"})),
    ("a character card", frozenset({"name", "first_mes"})),
    ("a chat log of Discord", frozenset({"guild", "channel", "messages"})),
)


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

    @cached_property
    def all(self) -> frozenset[str]:
        """All columns that can be needed."""
        return FORM_COLUMNS | {self.context, self.target, *IDS}

    def name_of(self, column: str) -> str | None:
        """Return the name under which a column is read; None if it is not.

        Args:
            column: its name in the file: capitals, blanks around it and the Chinese names are no matter.
        """
        if column in self.all:
            return column
        plain = column.strip().casefold()
        name = _CHINESE.get(plain, plain)
        return name if name in self.all else None

    def is_read(self, column: str) -> bool:
        """Return whether a column can be needed, by its name in the file."""
        return self.name_of(column) is not None

    def renamed(self, columns: Collection[str]) -> dict[str, str]:
        """Return the columns that are read under another name than their own, with that name.

        Args:
            columns: all columns of a row. One that has the name already is read, and no other; else the first is.
        """
        found: dict[str, str] = {}
        for column in columns:
            name = self.name_of(column)
            if name and name not in columns and name not in found.values():
                found[column] = name
        return found


def form_of(row: Mapping[str, Any], names: ColumnNames) -> str:
    """Return the form of a row: a name in `FORMS`, `context_target` or `token_ids`.

    A row without the columns of any form is one of `context_target`.

    Args:
        row: the row.
        names: the columns that are read.
    """
    if names.form != "auto":
        return names.form
    if all(row.get(name) is not None for name in IDS):
        return "token_ids"
    if isinstance(row.get(names.context), str):
        if row.get(names.target) is not None:
            return "context_target"
        if not names.target_required and not recognize(row, reply_required=True):  # else it is a passage, to a question
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
    read = {*found, *names.renamed(found).values()}
    form = form_of(dict.fromkeys(read, ""), names)
    if names.form == "auto" and form != "token_ids" and names.context not in read and (kind := _kind_to_import(found)):
        raise DataError(where, f"it is {kind}, and holds no rows", import_command(where))
    if form in FORMS:
        needed = [FORMS[form].prompt, FORMS[form].reply if names.target_required else None]
    else:
        needed = [names.context, names.target if names.target_required else None]
    missing = sorted({column for column in needed if column} - read)
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


def import_command(file: str | Path) -> str:
    """The sentence that says how to make a role of a file."""
    command = f"kyon-pl import-role {shlex.quote(str(file))} --output roles/NAME"
    return f"Make a role of a card, a chat log or a novel: {command}"


def _kind_to_import(columns: Collection[str]) -> str | None:
    """What a JSON file is, by its keys; None if it is no file for `kyon-pl import-role`."""
    return next((kind for kind, needed in _IMPORTED if needed <= {*columns}), None)


def _delimiter_in(header: str, names: ColumnNames) -> str:
    """Return what stands between the two columns in a header that was read as one column; empty if it is not clear."""
    start, context, rest = header.partition(names.context)
    between, target, _ = rest.partition(names.target)
    return between.strip("\"' ") if context and target and not start.strip("\"'") and len(between) < 6 else ""
