"""The roles that can be played, and the prompt of a role: system prompt, memories, history and question."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from kyon_pl.roles.contexts import BuiltContext, Room, build_context, context_settings
from kyon_pl.roles.retrieval import Retriever
from kyon_pl.roles.role import Role

HALF = "\ufffd"  # what the bytes of an unfinished character decode to
_TURNS_TEXT_ROUND = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of some ids."""


class Pieces:
    """Tells the text of tokens that come one by one; of a character in several tokens, not before its last.

    Args:
        tokenizer: decodes.
        on_text: told each piece of text.

    Attributes:
        text: what has been told.
    """

    def __init__(self, tokenizer: Decoder, on_text: Callable[[str], object]) -> None:
        self.tokenizer = tokenizer
        self.on_text = on_text
        self.token_ids: list[int] = []
        self.text = ""

    def put(self, token: int) -> None:
        """Take one more token."""
        self.token_ids.append(token)
        self._tell(self._decoded().rstrip(HALF))

    def end(self) -> None:
        """Tell what is left: half a character, if the reply ends in one."""
        self._tell(self._decoded())

    def _decoded(self) -> str:
        return self.tokenizer.decode(self.token_ids, skip_special_tokens=True)

    def _tell(self, text: str) -> None:
        if len(text) > len(self.text):
            self.on_text(text[len(self.text) :])
            self.text = text


def harmless(text: str) -> str:
    """A text without what moves a cursor, changes colours or turns the direction of reading round.

    Line ends and tabs stay; of the rest of Unicode's control characters each becomes `�`.
    """
    return "".join(
        character
        if character in "\n\t"
        or (unicodedata.category(character) not in ("Cc", "Cs") and character not in _TURNS_TEXT_ROUND)
        else HALF
        for character in text
    )


_NAMED = re.compile(r"([^\s:：]{1,20})[:：]\s*(.*)", re.DOTALL)
_SPOKEN = re.compile(r"^[^\s:：]{1,20}[:：]\s*(「)?", re.MULTILINE)


class RolePlay:
    """Makes the context of a question to a role.

    Args:
        role: who is asked.
        retrieval: how a question finds memories, see `kyon_pl.roles.build.build_data`.
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
