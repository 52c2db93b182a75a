"""A role played as its training rows were made: system prompt, memories that the question brings to mind, history."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from kyon_pl.data.contexts import MEMORY_NUMBER, ROOM, BuiltContext, ContextSettings, build_context
from kyon_pl.data.retrieval import Retriever
from kyon_pl.data.roles import Role

_NAMED = re.compile(r"[^\s:：]{1,20}[:：]")


class RolePlay:
    """Makes the context of a question to a role.

    Args:
        role: who is asked.
        retrieval: how a question finds memories, see `kyon_pl.data.build.build_data`.
        count: the tokens of a text.

    Raises:
        MachineError: `retrieval` is a model, and sentence-transformers is not installed.
    """

    def __init__(self, role: Role, retrieval: str, count: Callable[[str], int]) -> None:
        self.role = role
        self.retriever = Retriever(role, retrieval)
        self.settings = ContextSettings(MEMORY_NUMBER, *ROOM["tokens"], False, count)

    def question(self, text: str, asker: str) -> str:
        """A question as a turn of a dialogue.

        Args:
            text: what is asked.
            asker: whose name stands before a question that has none, as in training rows; empty: nobody's.
        """
        return f"{asker}:{text}" if asker and not _NAMED.match(text) else text

    def context(self, question: str, history: Sequence[str]) -> BuiltContext:
        """What a row with this question would have as its context.

        Args:
            question: from `question`.
            history: the turns before it, oldest first.
        """
        row = {"query": question, "answer": "", "chat_history": list(history), "embedding": []}
        (places,) = self.retriever.rank([row], 2 * MEMORY_NUMBER)
        return build_context(
            self.role.system_prompt, [self.role.memories[place] for place in places], row, self.settings
        )
