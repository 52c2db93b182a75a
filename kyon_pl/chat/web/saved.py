"""Conversations that come back from a visitor's browser or a file. They are checked like any input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kyon_pl.chat.conversation import Turn
from kyon_pl.chat.model import ChatReply
from kyon_pl.chat.web.sessions import MAX_NAME_CHARACTERS, MAX_VERSIONS, SessionLimits, Turns
from kyon_pl.data.reading.texts import SURROGATE
from kyon_pl.errors import DataError

WHERE = "conversation"
MAX_BYTES = 2**20
CHARACTERS_PER_TOKEN = 16  # of a reply, at most
MAX_MEMORIES = 32
_FORM = 'a row with the `messages` of user and assistant in turn, as "Export" writes it'


def read_turns(text: str, limits: SessionLimits) -> Turns:
    """The turns of a conversation: of a training row, or of what the page keeps in the browser.

    The page adds to a question `typed`, and to a reply `stopped`, `versions` and `memories`. A system prompt is not
    read, since the role has its own. Of a long conversation, the last turns are kept.

    Args:
        text: JSON with `messages`.
        limits: of the session.

    Raises:
        DataError: it is too long, no such JSON, or holds texts that are too long.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise DataError(WHERE, f"it has more than {MAX_BYTES:,} bytes", "Choose a shorter one")
    messages = _messages(text)
    if messages and messages[0].get("role") == "system":
        messages = messages[1:]
    if [message.get("role") for message in messages] != ["user", "assistant"] * (len(messages) // 2):
        raise _no_conversation()
    pairs = [*zip(messages[::2], messages[1::2], strict=True)][-limits.turns :]
    return tuple(_turn(question, reply, limits) for question, reply in pairs)


def _messages(text: str) -> list[dict[str, Any]]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise _no_conversation() from None
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _no_conversation()
    return messages


def _turn(question: Mapping[str, Any], answer: Mapping[str, Any], limits: SessionLimits) -> Turn:
    longest = limits.message_characters + 2 * MAX_NAME_CHARACTERS  # with the asker's name and quotes
    asked = _text(question.get("content"), longest)
    typed = _text(question.get("typed", asked), longest)
    longest = CHARACTERS_PER_TOKEN * limits.max_new_tokens
    reply = _reply([answer.get("content"), answer.get("stopped", True)], longest)
    versions = tuple(_reply(version, longest) for version in _list(answer.get("versions", []), MAX_VERSIONS))
    if versions and reply not in versions:
        raise _no_conversation()
    memories = tuple(_text(memory, MAX_BYTES) for memory in _list(answer.get("memories", []), MAX_MEMORIES))
    base = None if answer.get("base") is None else _reply(answer["base"], longest)
    return Turn(typed, asked, reply, base, max(0, len(versions) - 1), versions, memories)


def _reply(value: Any, longest: int) -> ChatReply:
    text, stopped = _list(value, 2) if isinstance(value, list) and len(value) == 2 else (None, None)
    if not isinstance(stopped, bool):
        raise _no_conversation()
    return ChatReply(_text(text, longest, may_be_empty=True), stopped)


def _list(value: Any, longest: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > longest:
        raise _no_conversation()
    return value


def _text(value: Any, longest: int, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or SURROGATE.search(value) or not (value.strip() or may_be_empty):
        raise _no_conversation()
    if len(value) > longest:
        raise DataError(WHERE, f"a text has {len(value):,} characters; at most {longest:,} are read", "Shorten it")
    return value


def _no_conversation() -> DataError:
    return DataError(WHERE, "this is no conversation", f"Choose {_FORM}")
