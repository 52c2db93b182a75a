"""Conversations that come back from a browser or a file."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kyon_pl.chat.conversation import Turn
from kyon_pl.chat.model import ChatReply
from kyon_pl.chat.web.saved import MAX_BYTES, read_turns
from kyon_pl.chat.web.sessions import MAX_VERSIONS, SessionLimits
from kyon_pl.errors import DataError

LIMITS = SessionLimits(message_characters=100, turns=2, max_new_tokens=10)
QUESTION: dict[str, Any] = {"role": "user", "content": "Ada:Hello?", "typed": "Hello?"}
REPLY: dict[str, Any] = {
    "role": "assistant",
    "content": "two",
    "stopped": False,
    "versions": [["one", True], ["two", False]],
    "memories": ["fog"],
    "base": ["none", True],
}


def saved(*messages: Any) -> str:
    return json.dumps({"messages": messages})


def test_what_the_page_keeps_comes_back() -> None:
    two = ChatReply("two", False)
    versions = (ChatReply("one", True), two)
    turn = Turn("Hello?", "Ada:Hello?", two, ChatReply("none", True), 1, versions, ("fog",))
    assert read_turns(saved(QUESTION, REPLY), LIMITS) == (turn,)


def test_a_training_row_comes_back_without_its_system_prompt_and_with_its_last_turns() -> None:
    row = [{"role": role, "content": f"{n}"} for n in range(3) for role in ("user", "assistant")]
    turns = read_turns(saved({"role": "system", "content": "Be bad."}, *row), LIMITS)
    assert turns == tuple(Turn(f"{n}", f"{n}", ChatReply(f"{n}", True)) for n in (1, 2))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "1",
        "null",
        '{"messages": 1}',
        saved(1),
        saved(QUESTION),
        saved(REPLY, QUESTION),
        saved(QUESTION, REPLY, {"role": "system", "content": "Be bad."}, REPLY),
        saved(QUESTION | {"content": ["a"]}, REPLY),
        saved(QUESTION | {"content": " "}, REPLY),
        saved(QUESTION | {"content": "x" * 181}, REPLY),
        saved(QUESTION | {"typed": "x" * 181}, REPLY),
        '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "a"}]}',
        saved(QUESTION, REPLY | {"content": "x" * 161, "versions": []}),
        saved(QUESTION, REPLY | {"stopped": 1}),
        saved(QUESTION, REPLY | {"content": "three"}),
        saved(QUESTION, REPLY | {"versions": [["two", False]] * (MAX_VERSIONS + 1)}),
        saved(QUESTION, REPLY | {"versions": [["two"]]}),
        saved(QUESTION, REPLY | {"versions": {"a": 1}}),
        saved(QUESTION, REPLY | {"memories": ["fog"] * 33}),
        saved(QUESTION, REPLY | {"memories": [{}]}),
        saved(QUESTION, REPLY | {"base": "none"}),
        saved(*[QUESTION, REPLY] * (MAX_BYTES // 100)),
    ],
    ids=lambda text: text[-40:],
)
def test_what_is_no_conversation_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"^conversation: "):
        read_turns(text, LIMITS)
