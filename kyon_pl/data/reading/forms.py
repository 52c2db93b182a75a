"""The forms in which people keep dialogue: recognized by their columns, and turned into one list of messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from kyon_pl.data.prompt import Message, render
from kyon_pl.data.reading.texts import MAX_CHARACTERS, Unusable, excerpt, is_blank, nothing_said, text_problem
from kyon_pl.data.reading.turns import parsed, read_turns
from kyon_pl.errors import no_such_choice

FormName = Literal[
    "auto",
    "context_target",
    "messages",
    "sharegpt",
    "conversation",
    "alpaca",
    "instruction_response",
    "query_response",
    "prompt_response",
    "prompt_completion",
    "question_answer",
    "input_output",
    "input_target",
    "content_summary",
    "user_assistant",
    "human_assistant",
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
        question: further columns of the question, which stand behind the prompt.
        common: whether the prompt's column means other things elsewhere: only with its reply it is one of this form.
    """

    prompt: str
    reply: str | None
    others: tuple[str, ...]
    said: str
    question: tuple[str, ...] = ()
    common: bool = False

    @cached_property
    def columns(self) -> frozenset[str]:
        """All columns that are read."""
        columns = (self.prompt, self.reply, *self.question, *self.others, "dialogue")
        return frozenset(column for column in columns if column)


_SYSTEM = ("system", "system_prompt")
_PAIR = (*_SYSTEM, "history")
FORMS: dict[str, Form] = {
    "messages": Form("messages", None, _SYSTEM, "messages"),
    "sharegpt": Form("conversations", None, _SYSTEM, "sharegpt conversations"),
    "conversation": Form("conversation", None, _SYSTEM, "conversation messages"),
    "alpaca": Form("instruction", "output", _PAIR, "alpaca instructions", ("input",)),
    "instruction_response": Form(
        "instruction", "response", _PAIR, "instruction and response", ("input", "context"), True
    ),
    "query_response": Form("query", "response", _PAIR, "query and response"),
    "prompt_response": Form("prompt", "response", _PAIR, "prompt and response"),
    "prompt_completion": Form("prompt", "completion", _PAIR, "prompt and completion"),
    "question_answer": Form("question", "answer", _PAIR, "question and answer"),
    "input_output": Form("input", "output", _PAIR, "input and output"),
    "input_target": Form("input", "target", _PAIR, "input and target", common=True),
    "content_summary": Form("content", "summary", _PAIR, "content and summary", common=True),
    "user_assistant": Form("user", "assistant", _PAIR, "user and assistant", common=True),
    "human_assistant": Form("human", "assistant", _PAIR, "human and assistant", common=True),
}
"""The forms besides a context and a target, in the order in which they are looked for."""

FORM_COLUMNS = frozenset().union(*(form.columns for form in FORMS.values()))


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
            if reply_required or form.common:
                continue
            replies = (form.reply or "" for form in FORMS.values() if not form.common)
            if all(row.get(reply) is None for reply in replies):
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
    turns = read_turns(row, column) if form.reply is None else list(_turns_of_pair(row, form, reply_required))
    messages = _joined([*beside, *turns])
    if sum(len(message["content"]) for message in messages) > MAX_CHARACTERS:
        raise Unusable(f"too long: the contents of {column!r} together")
    _check_order([message["role"] for message in messages], column, reply_required)
    target = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    return {"context": render(messages)[0].text, "target": target, "messages": messages}


def _has_text(row: Mapping[str, Any], column: str) -> bool:
    if is_blank(row.get(column)):
        return False
    if problem := text_problem(row, column):
        raise Unusable(problem)
    return True


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
        if isinstance(parsed(row.get(column)), list):  # TRL's prompts and completions of messages
            yield from read_turns(row, column)
            continue
        if problem := text_problem(row, column):
            raise Unusable(problem)
        text = row[column]
        if role == "assistant" and nothing_said(text):
            raise Unusable(f"nothing said in {column!r}: {excerpt(text)}")
        if role == "user":
            text = "\n".join([text, *(row[further] for further in form.question if _has_text(row, further))])
        yield role, text


def _text_of_history(text: Any, pair: Any, number: int) -> str:
    if text_problem({"text": text}, "text"):
        raise Unusable(f"no pair of texts in 'history': pair {number}, {excerpt(pair)}")
    return str(text)


def _history(row: Mapping[str, Any]) -> list[Any]:
    history = parsed(row.get("history"))
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
