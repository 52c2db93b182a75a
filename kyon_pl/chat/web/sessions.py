"""The chat sessions of the web page and their limits, independent of Gradio."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from kyon_pl.chat.conversation import Conversation, Turn, check_has_turns
from kyon_pl.chat.model import ChatModel, ChatReply, Sampling, StopReply, sampling_for_retry
from kyon_pl.chat.role_play import RolePlay
from kyon_pl.errors import SettingError

Turns = tuple[Turn, ...]
MAX_NAME_CHARACTERS = 40
MAX_VERSIONS = 9  # of a reply


@dataclass(frozen=True)
class SessionLimits:
    """Limits of each session.

    Attributes:
        message_characters: maximum length of a message.
        turns: number of turns that are kept; older ones are forgotten.
        max_new_tokens: maximum length of a reply, in tokens.
        queue_size: number of messages that can wait; more are refused.

    Raises:
        SettingError: a number below 1.
    """

    message_characters: int = 4000
    turns: int = 40
    max_new_tokens: int = 512
    queue_size: int = 32

    def __post_init__(self) -> None:
        options = ("message_characters", "turns_kept", "most_new_tokens", "queue_size")
        for option, number in zip(options, vars(self).values(), strict=True):
            if number < 1:
                raise SettingError(option, f"{number} is out of range", "Set 1 or more.")


@dataclass(frozen=True)
class SessionSettings:
    """What a visitor has set on the page.

    Attributes:
        role: name of the role to play; empty: none.
        asker: the name before a question to a role.
        adapter: name of the adapter; empty: the model's first.
        compares: whether the base model replies too.
        sampling: how tokens are chosen.
    """

    role: str = ""
    asker: str = ""
    adapter: str = ""
    compares: bool = False
    sampling: Sampling = field(default_factory=Sampling)


@dataclass
class Sessions:
    """Answers all sessions with one model, one reply at a time.

    Attributes:
        model: replies.
        roles: the roles that can be played, by name.
        max_tokens: maximum length of prompt and reply together.
        limits: of each session.
    """

    model: ChatModel
    roles: Mapping[str, RolePlay]
    max_tokens: int
    limits: SessionLimits
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, turns: Turns, typed: str, settings: SessionSettings) -> Iterator[Turns]:
        """Yield the turns with a new one whose reply grows. Closing the iterator ends the reply.

        Args:
            turns: the turns so far.
            typed: the question.
            settings: of the visitor.

        Raises:
            SettingError: an empty or too long message, or a number out of range.
            DataError: the question is too long for the model.
        """
        if not typed.strip():
            raise SettingError("message", "it is empty", "Ask something")
        if len(typed) > self.limits.message_characters:
            found = f"{len(typed):,} characters; the maximum is {self.limits.message_characters:,}"
            raise SettingError("message", found, "Shorten it")
        tokens = min(settings.sampling.max_new_tokens, self.limits.max_new_tokens)
        sampling = replace(settings.sampling, max_new_tokens=tokens)
        turns = turns[-self.limits.turns + 1 :] if self.limits.turns > 1 else ()
        conversation = self.conversation(turns, settings)
        with self._lock:
            question = conversation.question(typed)
            for text in stream_text(lambda on_text: conversation.ask(typed, sampling, on_text)):
                yield (*turns, Turn(typed, question, ChatReply(text, stopped=False)))
            conversation.turns[-1] = replace(conversation.turns[-1], memories=conversation.memories())
            yield tuple(conversation.turns)
            if settings.compares and self.model.adapters:
                last = conversation.turns[-1]
                for text in stream_text(lambda on_text: conversation.compare(sampling, on_text)):
                    yield (*turns, replace(last, base=ChatReply(text, stopped=False)))
                yield tuple(conversation.turns)

    def conversation(self, turns: Turns, settings: SessionSettings) -> Conversation:
        """A session's conversation, as in the terminal."""
        role = self.roles[settings.role] if settings.role else None
        asker = settings.asker.strip()[:MAX_NAME_CHARACTERS]
        return Conversation(self.model, self.max_tokens, role, turns=[*turns], asker=asker, adapter=settings.adapter)

    def ask_again(self, turns: Turns, settings: SessionSettings) -> Iterator[Turns]:
        """Ask the last question again, sampled anew. The replies so far are kept as versions of the new one.

        Args:
            turns: the turns so far.
            settings: of the visitor.

        Raises:
            SettingError: there are no turns, or what `ask` refuses.
            DataError: as `ask`.
        """
        check_has_turns("retry", turns)
        last = turns[-1]
        sampling = sampling_for_retry(settings.sampling, last.retries + 1, samples=bool(settings.role))
        kept = (last.versions or (last.reply,))[1 - MAX_VERSIONS :]
        for new_turns in self.ask(turns[:-1], last.typed, replace(settings, sampling=sampling)):
            new = new_turns[-1]
            versions = kept if new.reply in kept else (*kept, new.reply)
            yield (*new_turns[:-1], replace(new, retries=last.retries + 1, versions=versions))

    def export(self, turns: Turns, settings: SessionSettings) -> str:
        """The conversation as a training row, a line of JSON.

        Raises:
            SettingError: there are no turns.
        """
        check_has_turns("export", turns)
        messages = self.conversation(turns, settings).messages()
        return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def stream_text(generate: Callable[[Callable[[str], None]], ChatReply]) -> Generator[str, None, None]:
    """Yield the text of a reply as it grows. Closing the generator ends the reply.

    Args:
        generate: runs in a thread, and calls its argument with each new piece of text.
    """
    pieces: SimpleQueue[str | None] = SimpleQueue()
    closed = threading.Event()

    def on_text(piece: str) -> None:
        if closed.is_set():
            raise StopReply
        pieces.put(piece)

    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(generate, on_text)
        reply.add_done_callback(lambda _: pieces.put(None))
        text = ""
        try:
            while (piece := pieces.get()) is not None:
                text += piece
                yield text
        finally:
            closed.set()
    reply.result()
