"""Turns as the messages that the page shows. panel.js reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kyon_pl.chat.conversation import Turn
from kyon_pl.chat.model import ChatReply
from kyon_pl.chat.web.page.labels import escape
from kyon_pl.chat.web.sessions import Turns

UNFINISHED = " […]"


def messages(turns: Turns, *, of_base: bool = False, running: bool = False, greeting: str = "") -> list[dict[str, Any]]:
    """The messages of a panel. All their texts are escaped.

    Args:
        turns: the turns.
        of_base: the base model's replies instead.
        running: whether the last reply still grows.
        greeting: what the role says first.
    """
    first = [_message("assistant", greeting, {"greeting": True})] if greeting and not of_base else []
    last = len(turns) - 1
    return first + [
        message
        for number, turn in enumerate(turns)
        for message in _of_turn(number, turn, of_base, running and number == last)
    ]


def _of_turn(number: int, turn: Turn, of_base: bool, running: bool) -> Iterator[dict[str, Any]]:
    yield _message("user", turn.typed, {"turn": number, "question": escape(turn.question)})
    if of_base:
        if turn.base:
            yield _message("assistant", _with_end(turn.base), {"turn": number, **_reply(turn.base), "running": running})
        return
    versions = turn.versions or (turn.reply,)
    about = {
        "turn": number,
        **_reply(turn.reply),
        "running": running,
        "versions": [[escape(version.text), version.stopped] for version in versions],
        "version": versions.index(turn.reply) if turn.reply in versions else len(versions) - 1,
        "memories": [escape(memory) for memory in turn.memories],
        "base": [escape(turn.base.text), turn.base.stopped] if turn.base else None,
    }
    yield _message("assistant", _with_end(turn.reply), about)


def _message(role: str, text: str, about: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": escape(text)}], "metadata": about}


def _reply(reply: ChatReply) -> dict[str, Any]:
    return {"stopped": reply.stopped}


def _with_end(reply: ChatReply) -> str:
    return reply.text + ("" if reply.stopped else UNFINISHED)
