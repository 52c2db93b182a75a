"""What visitors of the page may do, within limits; nothing here knows of Gradio."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from kyon_pl.chat.conversation import Conversation, Turn
from kyon_pl.chat.role_play import RolePlay
from kyon_pl.chat.speaker import Said, Sampling, Speaker, StopReply
from kyon_pl.errors import SettingError

Turns = tuple[Turn, ...]
NAME_CHARACTERS = 40


@dataclass(frozen=True)
class Limits:
    """What one visitor can take of the machine.

    Attributes:
        message_characters: the longest message.
        turns: kept of a conversation; older ones are forgotten.
        max_new_tokens: the longest reply.
        waiting: messages in the queue; more are refused.

    Raises:
        SettingError: a number below 1.
    """

    message_characters: int = 4000
    turns: int = 40
    max_new_tokens: int = 512
    waiting: int = 32

    def __post_init__(self) -> None:
        names = ("message_characters", "turns_kept", "most_new_tokens", "queue_size")  # of the options
        for name, number in zip(names, vars(self).values(), strict=True):
            if number < 1:
                raise SettingError(name, f"{number} is impossible", "Set 1 or more.")


@dataclass(frozen=True)
class Wishes:
    """What a visitor has set.

    Attributes:
        role: a name among the host's roles; empty: none.
        asker: whose name stands before a question to a role.
        adapter: a name among the speaker's; empty: the first.
        compares: whether the base replies too.
        sampling: how tokens are chosen.
    """

    role: str = ""
    asker: str = ""
    adapter: str = ""
    compares: bool = False
    sampling: Sampling = field(default_factory=Sampling)


@dataclass
class Host:
    """Holds conversations with many visitors, one reply at a time.

    Attributes:
        speaker: who replies.
        roles: that can be played, by name.
        max_tokens: the longest prompt with its reply.
        limits: for each visitor.
    """

    speaker: Speaker
    roles: Mapping[str, RolePlay]
    max_tokens: int
    limits: Limits
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, turns: Turns, typed: str, wishes: Wishes) -> Iterator[Turns]:
        """The turns with one more, whose reply grows; closing the iterator ends the reply.

        Args:
            turns: so far.
            typed: the question.
            wishes: what the visitor has set.

        Raises:
            SettingError: an empty or too long message, or an impossible number.
            DataError: the question is too long for the model.
        """
        if not typed.strip():
            raise SettingError("message", "it is empty", "Ask something")
        if len(typed) > self.limits.message_characters:
            found = f"{len(typed):,} characters, and {self.limits.message_characters:,} are taken"
            raise SettingError("message", found, "Ask in fewer words")
        tokens = min(wishes.sampling.max_new_tokens, self.limits.max_new_tokens)
        wishes = replace(wishes, sampling=replace(wishes.sampling, max_new_tokens=tokens))
        turns = turns[-self.limits.turns + 1 :] if self.limits.turns > 1 else ()
        conversation = self.conversation(turns, wishes)
        with self._one_at_a_time:
            yield from self._replies(conversation, turns, typed, wishes)

    def _replies(self, conversation: Conversation, turns: Turns, typed: str, wishes: Wishes) -> Iterator[Turns]:
        sampling, question = wishes.sampling, conversation.question(typed)
        for text in growing(lambda tell: conversation.ask(typed, sampling, tell)):
            yield (*turns, Turn(typed, question, Said(text, stopped=False)))
        yield tuple(conversation.turns)
        if not (wishes.compares and self.speaker.tuned):
            return
        last = conversation.turns[-1]
        for text in growing(lambda tell: conversation.compare(sampling, tell)):
            yield (*turns, replace(last, base=Said(text, stopped=False)))
        yield tuple(conversation.turns)

    def conversation(self, turns: Turns, wishes: Wishes) -> Conversation:
        """A visitor's conversation, as the terminal would hold it."""
        role = self.roles[wishes.role] if wishes.role else None
        asker = wishes.asker.strip()[:NAME_CHARACTERS]
        return Conversation(self.speaker, self.max_tokens, role, turns=[*turns], asker=asker, adapter=wishes.adapter)

    def memories(self, turns: Turns, wishes: Wishes) -> tuple[str, ...]:
        """What the last question brought to the role's mind, nearest first."""
        return self.conversation(turns, wishes).memories()

    def export(self, turns: Turns, wishes: Wishes) -> str:
        """The conversation as a row that fit can read.

        Raises:
            SettingError: nothing has been said.
        """
        if not turns:
            raise SettingError("export", "nothing has been said", "Ask something first")
        messages = self.conversation(turns, wishes).messages()
        return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def growing(say: Callable[[Callable[[str], None]], Said]) -> Generator[str, None, None]:
    """A reply's text as it grows, out of a function that tells it piece by piece; closing ends the reply.

    Args:
        say: is given whom to tell, and runs in a thread of its own.
    """
    told: SimpleQueue[str | None] = SimpleQueue()
    closed = threading.Event()

    def listen(piece: str) -> None:
        if closed.is_set():
            raise StopReply
        told.put(piece)

    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(say, listen)
        reply.add_done_callback(lambda _: told.put(None))
        text = ""
        try:
            while (piece := told.get()) is not None:
                text += piece
                yield text
        finally:
            closed.set()
    reply.result()
