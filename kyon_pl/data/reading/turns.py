"""Lists of turns in one column of a row: messages, ShareGPT conversations, rounds of question and reply."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from typing import Any

from kyon_pl.data.reading.texts import Unusable, excerpt, is_blank, nothing_said, text_problem

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "系统": "system",
    "用户": "user",
    "助手": "assistant",
}
_ROUNDS = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("question", "answer"))
"""The keys of a round, whose question and reply stand in one object: Firefly's and XTuner's are among them."""
_TURN_KEYS = frozenset({"role", "from", "content", "value"})
_Turn = tuple[str, str]


def read_turns(row: Mapping[str, Any], column: str) -> list[_Turn]:
    """Return the role and the text of each turn of a list.

    Args:
        row: the row.
        column: column of the list: of turns with `role` and `content` or `from` and `value`, of rounds, or of both.

    Raises:
        Unusable: it is no list, or one of its turns cannot be read.
    """
    turns = parsed(row[column])
    if not isinstance(turns, list):
        raise Unusable(f"no list in {column!r}: {excerpt(turns)}")
    if not turns:
        raise Unusable(f"empty {column!r}")
    found = []
    for number, turn in enumerate(turns, start=1):
        for role, text, problem in _turns_of(turn, number, last=number == len(turns)):
            if problem:
                kind, _, details = problem.partition(": ")
                raise Unusable(f"{kind} in {column!r}: message {number}" + (f", {details}" if details else ""))
            if role != "system" or text.strip():
                found.append((role, text))
    return found


def unread_keys(row: Mapping[str, Any], column: str) -> set[str]:
    """Return the keys in the turns of a list that are not read, as `messages.name`."""
    if not isinstance(turns := parsed(row.get(column)), list):
        return set()
    found = set()
    for turn in turns:
        if isinstance(turn, Mapping):
            read = {"system", *keys} if (keys := _keys_of_round(turn)) else _TURN_KEYS
            found |= {f"{column}.{key}" for key, value in turn.items() if key not in read and value is not None}
    return found


def parsed(value: Any) -> Any:
    """Return a list that was written as JSON text, or as pandas writes lists to CSV; anything else unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def _keys_of_round(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the keys of question and reply; None if it is a turn of one speaker."""
    if turn.get("role") is not None or turn.get("from") is not None:
        return None
    return next((keys for keys in _ROUNDS if all(key in turn for key in keys)), None)


def _turns_of(turn: Any, number: int, last: bool) -> Iterator[tuple[str, Any, str]]:
    """Yield role, text and problem of a turn, or of the system prompt, the question and the reply of a round."""
    if not isinstance(turn, Mapping):
        yield "", "", f"no message: {excerpt(turn)}"
    elif keys := _keys_of_round(turn):
        question, reply = keys
        yield _spoken("system", turn, "system")
        if number > 1 or not is_blank(turn[question]):  # a greeting has no question
            yield _spoken("user", turn, question)
        if not last or turn[reply] is not None:  # a prompt to be answered has no reply
            yield _spoken("assistant", turn, reply)
    else:
        given = turn["role"] if turn.get("role") is not None else turn.get("from")
        role = _ROLES.get(given.lower()) if isinstance(given, str) else None
        if role is None:
            yield "", "", f"no known role: {excerpt(given)}"
        else:
            yield _spoken(role, turn, "value" if turn.get("content") is None and "value" in turn else "content")


def _spoken(role: str, turn: Mapping[str, Any], key: str) -> tuple[str, Any, str]:
    """Return role, text and problem of what one speaker says; a system prompt can be missing."""
    content = _text_of_parts(turn.get(key))
    if role == "system" and is_blank(content):
        return role, "", ""
    problem = text_problem({key: content} if key in turn else {}, key)
    if not problem and role == "assistant" and nothing_said(content):
        problem = f"nothing said: {excerpt(content)}"
    return role, content, problem


def _text_of_parts(content: Any) -> Any:
    """Join the parts of a content if all of them are text; anything else is returned unchanged."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    strings = [text for text in texts if isinstance(text, str)]
    return "\n".join(strings) if len(strings) == len(texts) else content
