"""The forms in which people keep dialogue: recognized by their columns, and turned into one list of messages."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from kyon_pl.data.prompt import Message, render
from kyon_pl.data.reading.texts import MAX_CHARACTERS, excerpt, nothing_said, text_problem
from kyon_pl.errors import no_such_choice

FormName = Literal[
    "auto",
    "context_target",
    "messages",
    "sharegpt",
    "conversation",
    "alpaca",
    "query_response",
    "prompt_response",
    "prompt_completion",
    "question_answer",
    "input_output",
]
"""A form; `auto`: recognized in each row."""


@dataclass(frozen=True)
class Form:
    """Columns of a form.

    Attributes:
        prompt: column of the prompt; of a list of turns, if there is no column of the reply.
        reply: column of the reply.
        others: further columns that are read.
        said: what the rows are, for the report.
    """

    prompt: str
    reply: str | None
    others: tuple[str, ...]
    said: str

    @cached_property
    def columns(self) -> frozenset[str]:
        """All columns that are read."""
        return frozenset(column for column in (self.prompt, self.reply, *self.others, "dialogue") if column)


_SYSTEM = ("system", "system_prompt")
_PAIR = (*_SYSTEM, "history")
FORMS: dict[str, Form] = {
    "messages": Form("messages", None, _SYSTEM, "messages"),
    "sharegpt": Form("conversations", None, _SYSTEM, "sharegpt conversations"),
    "conversation": Form("conversation", None, _SYSTEM, "conversation messages"),
    "alpaca": Form("instruction", "output", (*_PAIR, "input"), "alpaca instructions"),
    "query_response": Form("query", "response", _PAIR, "query and response"),
    "prompt_response": Form("prompt", "response", _PAIR, "prompt and response"),
    "prompt_completion": Form("prompt", "completion", _PAIR, "prompt and completion"),
    "question_answer": Form("question", "answer", _PAIR, "question and answer"),
    "input_output": Form("input", "output", _PAIR, "input and output"),
}
"""The forms besides a context and a target, in the order in which they are looked for."""

FORM_COLUMNS = frozenset().union(*(form.columns for form in FORMS.values()))
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_TURN_KEYS = {"role", "from", "content", "value"}


class Unusable(Exception):  # noqa: N818
    """Why a row cannot be used, as kind, `: ` and details; never leaves this package."""


def check_form(form: str) -> None:
    """Check that a form exists.

    Raises:
        SettingError: it does not.
    """
    if form not in get_args(FormName):
        raise no_such_choice("data.form", form, get_args(FormName))


def recognize(row: Mapping[str, Any], reply_required: bool) -> str | None:
    """Return the name of the first form in `FORMS` whose columns a row has; None if there is none.

    Args:
        row: the row; a column that is None counts as missing.
        reply_required: False for prompts to be answered.
    """
    for name, form in FORMS.items():
        if row.get(form.prompt) is not None:
            if form.reply is None or row.get(form.reply) is not None:
                return name
            if not reply_required and not any(row.get(other.reply or "") is not None for other in FORMS.values()):
                return name
    return None


def to_conversation(row: Mapping[str, Any], form: Form, reply_required: bool) -> dict[str, Any]:
    """Turn a row of a form into the columns of a conversation.

    A system prompt beside the turns is put before them. Turns of the same speaker in a row are joined by a line break.
    An assistant's turn before the first question is a greeting, and part of the context.

    Args:
        row: the row.
        form: its form.
        reply_required: whether the last turn must be the assistant's.

    Returns:
        `context`: the text of the messages before the reply; `messages`: these; `target`: the reply, or None.

    Raises:
        Unusable: the row cannot be used.
    """
    column = form.prompt
    beside = [("system", row[name]) for name in _SYSTEM if name in form.others and _has_text(row, name)]
    turns = _turns(row, column) if form.reply is None else list(_turns_of_pair(row, form, reply_required))
    messages = _joined([*beside, *turns])
    if sum(len(message["content"]) for message in messages) > MAX_CHARACTERS:
        raise Unusable(f"too long: the contents of {column!r} together")
    _check_order([message["role"] for message in messages], column, reply_required)
    target = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    return {"context": render(messages)[0].text, "target": target, "messages": messages}


def unread_keys(row: Mapping[str, Any], form: Form) -> set[str]:
    """Return the keys in the turns of a conversation that are not read, as `messages.name`."""
    if form.reply is not None or not isinstance(turns := _parsed(row.get(form.prompt)), list):
        return set()
    keys = {key for turn in turns if isinstance(turn, Mapping) for key, value in turn.items() if value is not None}
    return {f"{form.prompt}.{key}" for key in keys - _TURN_KEYS}


def _has_text(row: Mapping[str, Any], column: str) -> bool:
    text = row.get(column)
    if text is None or (isinstance(text, str) and not text.strip()):
        return False
    if problem := text_problem(row, column):
        raise Unusable(problem)
    return True


def _parsed(value: Any) -> Any:
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


def _turns(row: Mapping[str, Any], column: str) -> list[tuple[str, str]]:
    """Return the role and the text of each turn of a list."""
    turns = _parsed(row[column])
    if not isinstance(turns, list):
        raise Unusable(f"no list in {column!r}: {excerpt(turns)}")
    if not turns:
        raise Unusable(f"empty {column!r}")
    found = []
    for number, turn in enumerate(turns, start=1):
        role, text, problem = _turn(turn)
        if problem:
            kind, _, details = problem.partition(": ")
            raise Unusable(f"{kind} in {column!r}: message {number}" + (f", {details}" if details else ""))
        if role != "system" or text.strip():
            found.append((role, text))
    return found


def _turn(turn: Any) -> tuple[str, str, str]:
    """Return role, text and problem of a turn with `role` and `content`, or `from` and `value`."""
    if not isinstance(turn, Mapping):
        return "", "", f"no message: {excerpt(turn)}"
    given = turn["role"] if turn.get("role") is not None else turn.get("from")
    role = _ROLES.get(given.lower()) if isinstance(given, str) else None
    if role is None:
        return "", "", f"no known role: {excerpt(given)}"
    key = "value" if turn.get("content") is None and "value" in turn else "content"
    content = _text_of_parts(turn.get(key))
    if role == "system" and (content is None or (isinstance(content, str) and not content.strip())):
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


def _turns_of_pair(row: Mapping[str, Any], form: Form, reply_required: bool) -> Iterator[tuple[str, str]]:
    assert form.reply is not None
    for number, pair in enumerate(_history(row), start=1):
        question, reply = pair if isinstance(pair, (list, tuple)) and len(pair) == 2 else (None, None)
        if number > 1 or question:  # a greeting has no question
            yield "user", _text_of_history(question, pair, number)
        yield "assistant", _text_of_history(reply, pair, number)
    for role, column in (("user", form.prompt), ("assistant", form.reply)):
        if role == "assistant" and not reply_required and row.get(column) is None:
            return
        if isinstance(_parsed(row.get(column)), list):  # TRL's prompts and completions of messages
            yield from _turns(row, column)
            continue
        if problem := text_problem(row, column):
            raise Unusable(problem)
        text = row[column]
        if role == "assistant" and nothing_said(text):
            raise Unusable(f"nothing said in {column!r}: {excerpt(text)}")
        if role == "user" and form.prompt == "instruction" and _has_text(row, "input"):
            text += "\n" + row["input"]
        yield role, text


def _text_of_history(text: Any, pair: Any, number: int) -> str:
    if text_problem({"text": text}, "text"):
        raise Unusable(f"no pair of texts in 'history': pair {number}, {excerpt(pair)}")
    return str(text)


def _history(row: Mapping[str, Any]) -> list[Any]:
    history = _parsed(row.get("history"))
    if history is None or history == "":
        return []
    if not isinstance(history, list):
        raise Unusable(f"no list in 'history': {excerpt(history)}")
    return history


def _joined(turns: list[tuple[str, str]]) -> list[Message]:
    """Return messages in which no two neighbours are of one speaker."""
    messages: list[Message] = []
    for role, text in turns:
        if messages and messages[-1]["role"] == role:
            if (role, text) != ("system", messages[-1]["content"]):  # beside the turns and among them
                messages[-1]["content"] += "\n" + text
        else:
            messages.append({"role": role, "content": text})  # type: ignore[typeddict-item]
    return messages


def _check_order(roles: list[str], column: str, reply_required: bool) -> None:
    if "system" in roles[1:]:
        number = roles.index("system", 1) + 1
        raise Unusable(f"roles out of turn in {column!r}: message {number} is of system, which must be the first")
    if not roles or roles[-1] == "system" or (reply_required and roles[-1] != "assistant"):
        raise Unusable(f"no reply at the end of {column!r}: the last is of {roles[-1] if roles else 'nobody'}")
    if "user" not in roles:
        raise Unusable(f"no question in {column!r}: only the assistant speaks")
