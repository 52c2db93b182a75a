"""Checks that a row can be used, and reasons why it cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kyon_pl.data.prompt import render
from kyon_pl.data.reading.files import Unreadable
from kyon_pl.data.split import dialogue_hash
from kyon_pl.errors import DataError

_QUOTES = re.compile(r"(?:[^:：\n]{0,40}[:：])?[\s「」『』“”‘’\"']*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_CHARACTERS = 1_000_000  # several times 32,768 tokens, the model's longest input; encoding 50 MB takes minutes
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ColumnNames:
    """Names of the columns that are read.

    Attributes:
        context: column of the prompt.
        target: column of the reply.
        target_required: False for prompts to be answered, where a target is an optional reference.
    """

    context: str = "context"
    target: str = "target"
    target_required: bool = True


def check_columns(where: str, names: ColumnNames, found: set[str]) -> None:
    """Check that the columns exist: with a wrong name, every row would be a bad row.

    Args:
        where: the file or data set.
        names: the columns that are read.
        found: all columns of the first rows; if empty, the rows themselves are bad and nothing is checked.

    Raises:
        DataError: a column is missing, and the rows carry neither ids nor messages.
    """
    missing = {names.context, names.target} - found if names.target_required else {names.context} - found
    if found and missing and not found >= {"input_ids", "seq_len"} and "messages" not in found:
        raise DataError(
            where,
            f"no column {min(missing)!r}; the columns are {', '.join(sorted(found))}",
            "Set data.context_column and data.target_column to the names of the prompt's and the reply's column.",
        )


def check_row(row: Any, names: ColumnNames) -> dict[str, Any]:
    """Reduce a row to the columns that are used.

    Args:
        row: a row of any type, as read.
        names: the columns that are read.

    Returns:
        `context`, `target`, `messages`, `dialogue` (its hash), `input_ids`, `seq_len`; and `problem`: why the row
        cannot be used, as kind, `: ` and details; empty if it can. A row with `input_ids` and `seq_len` is used
        unchanged. A row with `messages` and no context is a conversation: its last reply is the target, `messages` are
        those before, and `context` is their text.
    """
    checked: dict[str, Any] = {
        "context": "",
        "target": None,
        "messages": [],
        "dialogue": 0,
        "input_ids": [],
        "seq_len": 0,
        "problem": "",
    }
    if isinstance(row, Unreadable):
        return checked | {"problem": row.problem}
    if not isinstance(row, Mapping):
        return checked | {"problem": f"not a row: {_excerpt(row)}"}
    if row.get("input_ids") is not None and row.get("seq_len") is not None:
        problem = _ids_problem(row["input_ids"], row["seq_len"])
        found = {name: row[name] for name in ("input_ids", "seq_len")}
    elif row.get(names.context) is None and row.get("messages") is not None:
        problem = _messages_problem(row["messages"], names.target_required)
        found = {} if problem else _conversation(row["messages"])
    else:
        problem = _text_problem(row, names.context) or _target_problem(row, names)
        found = {"context": row.get(names.context), "target": row.get(names.target)}
    return checked | ({"problem": problem} if problem else {"dialogue": dialogue_hash(row.get("dialogue")), **found})


def _target_problem(row: Mapping[str, Any], names: ColumnNames) -> str:
    if not names.target_required and row.get(names.target) is None:
        return ""
    problem = _text_problem(row, names.target)
    if not problem and names.target_required and _QUOTES.fullmatch(row[names.target]):
        return f"nothing said in {names.target!r}: {_excerpt(row[names.target])}"
    return problem


def _messages_problem(messages: Any, target_required: bool) -> str:
    if not isinstance(messages, list):
        return f"no list in 'messages': {_excerpt(messages)}"
    if not messages:
        return "empty 'messages'"
    for number, message in enumerate(messages, start=1):
        if problem := _message_problem(message):
            kind, _, details = problem.partition(": ")
            return f"{kind} in 'messages': message {number}" + (f", {details}" if details else "")
    if sum(len(message["content"]) for message in messages) > _MAX_CHARACTERS:
        return "too long: the contents of 'messages' together"
    return _order_problem([message["role"] for message in messages], target_required)


def _message_problem(message: Any) -> str:
    if not isinstance(message, Mapping):
        return f"no message: {_excerpt(message)}"
    if message.get("role") not in _ROLES:
        return f"no known role: {_excerpt(message.get('role'))}"
    problem = _text_problem(message, "content")
    if not problem and message["role"] == "assistant" and _QUOTES.fullmatch(message["content"]):
        return f"nothing said: {_excerpt(message['content'])}"
    return problem


def _order_problem(roles: list[str], target_required: bool) -> str:
    first = roles[0] == "system"
    for index, role in enumerate(roles[first:]):
        expected = "assistant" if index % 2 else "user"
        if role != expected:
            return f"roles out of turn in 'messages': message {index + 1 + first} is of {role}, not of {expected}"
    if roles[-1] == "system" or (target_required and roles[-1] != "assistant"):
        return f"no reply at the end of 'messages': the last is of {roles[-1]}"
    return ""


def _conversation(messages: list[Mapping[str, str]]) -> dict[str, Any]:
    turns = [{"role": message["role"], "content": message["content"]} for message in messages]
    target = turns.pop()["content"] if turns[-1]["role"] == "assistant" else None
    return {"context": render(turns)[0].text, "target": target, "messages": turns}  # type: ignore[arg-type]


def _text_problem(row: Mapping[str, Any], column: str) -> str:
    if column not in row:
        return f"no {column!r}"
    text = row[column]
    if text is None:
        return f"null in {column!r}"
    if not isinstance(text, str):
        return f"no text in {column!r}: {_excerpt(text)}"
    if not text.strip():
        return f"empty {column!r}"
    if len(text) > _MAX_CHARACTERS:
        return f"too long: {len(text):,} characters in {column!r}"
    if "\0" in text:
        return f"no text in {column!r}: it holds a NUL, as binary data does"
    return f"half a character in {column!r}: a lone surrogate" if _SURROGATE.search(text) else ""


def _ids_problem(ids: Any, seq_len: Any) -> str:
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
        return f"no list of token ids in 'input_ids': {_excerpt(ids)}"
    if type(seq_len) is not int or not 0 < seq_len < len(ids):
        return f"'seq_len' leaves nothing to train: {_excerpt(seq_len)} of {len(ids)} ids"
    return ""


def _excerpt(value: Any) -> str:
    return f"{str(value)[:40]!r} ({type(value).__name__})"
