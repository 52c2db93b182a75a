"""A role played as its training rows were made: system prompt, memories that the question brings to mind, history."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from kyon_pl.data.contexts import BuiltContext, Room, build_context, context_settings
from kyon_pl.data.retrieval import Retriever
from kyon_pl.data.roles import Role

_NAMED = re.compile(r"([^\s:：]{1,20})[:：]\s*(.*)", re.DOTALL)
_SPOKEN = re.compile(r"^[^\s:：]{1,20}[:：]\s*(「)?", re.MULTILINE)


class RolePlay:
    """Makes the context of a question to a role.

    Args:
        role: who is asked.
        retrieval: how a question finds memories, see `kyon_pl.data.build.build_data`.
        room: memories and history, as there.
        count: the tokens of a text.

    Raises:
        MachineError: `retrieval` is a model, and sentence-transformers is not installed.
    """

    def __init__(self, role: Role, retrieval: str, room: Room, count: Callable[[str], int]) -> None:
        self.role = role
        self.retriever = Retriever(role, retrieval)
        if room.memory_number is None:
            room = replace(room, memory_number=role.memory_number)
        self.settings = context_settings(room, "tokens", False, count)
        spoken = [bool(line[1]) for memory in role.memories for line in _SPOKEN.finditer(memory)]
        self.quotes = sum(spoken) > len(spoken) / 2

    def question(self, text: str, asker: str) -> str:
        """A question as a turn of a dialogue, in 「」 if most lines of the role's memories are.

        Published role data is written so (95 % of its questions), and a character that was trained on it answers in
        its own manner only when it is asked in that one.

        Args:
            text: what is asked.
            asker: whose name stands before a question that has none, as in training rows; empty: nobody's.
        """
        named = _NAMED.fullmatch(text)
        name, said = named.groups() if named else (asker, text)
        if self.quotes and name and not said.startswith("「"):
            return f"{name}:「{said}」"
        return text if named or not asker else f"{asker}:{text}"

    def context(self, question: str, history: Sequence[str]) -> BuiltContext:
        """What a row with this question would have as its context.

        Args:
            question: from `question`.
            history: the turns before it, oldest first.
        """
        row = {"query": question, "answer": "", "chat_history": list(history), "embedding": []}
        (places,) = self.retriever.rank([row], 2 * self.settings.memory_number)
        return build_context(
            self.role.system_prompt, [self.role.memories[place] for place in places], row, self.settings
        )
