"""A role played as its training rows were made: system prompt, memories that the question brings to mind, history."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from kyon_pl.data.contexts import BuiltContext, ContextSettings, build_context
from kyon_pl.data.retrieval import Retriever
from kyon_pl.data.roles import Role

MEMORY_NUMBER, MEMORY_TOKENS, HISTORY_TOKENS = 8, 1000, 500  # what build-data takes where nothing else is said
_NAMED = re.compile(r"[^\s:：]{1,20}[:：]")


class RolePlay:
    """Makes the context of a question to a role.

    Args:
        role: who is asked.
        asker: whose name stands before a question that has none, as in training rows; empty: nobody's.
        retrieval: how a question finds memories, see `kyon_pl.data.build.build_data`.
        count: the tokens of a text.

    Raises:
        MachineError: `retrieval` is a model, and sentence-transformers is not installed.
    """

    def __init__(self, role: Role, asker: str, retrieval: str, count: Callable[[str], int]) -> None:
        self.role = role
        self.asker = asker
        self.retriever = Retriever(role, retrieval)
        self.settings = ContextSettings(MEMORY_NUMBER, MEMORY_TOKENS, HISTORY_TOKENS, False, count)

    def question(self, text: str) -> str:
        """A question as a turn of a dialogue."""
        return f"{self.asker}:{text}" if self.asker and not _NAMED.match(text) else text

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
