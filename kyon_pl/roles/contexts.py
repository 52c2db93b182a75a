"""A question, its history and the memories it brings to mind, put together into a context: as the original, or well."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any, Literal

from kyon_pl.data.prompt import SEPARATOR, Context
from kyon_pl.errors import SettingError
from kyon_pl.roles.role import TITLE_END

ROOM = {"characters": (2000, 1000), "tokens": (1000, 500)}  # for memories and for the history, if nothing is said
MEMORY_NUMBER = 8
_SHORT_WORDS = 8  # characters; a shorter reply ("Yes, of course") stands in many a scene that is not its own
_SPEAKER = re.compile(r"[^:：\n]{0,40}[:：]")
_SEPARATORS = re.compile(f"{SEPARATOR}+")


def original_memory(memories: Sequence[str], memory_length: int) -> str:
    """Memories joined until one does not fit; those behind it are not looked at.

    Each has the length of a separator added, also the first. A memory ends at a second `｜｜｜`, as the original
    takes what stands between the first two.

    Args:
        memories: nearest first.
        memory_length: in characters.
    """
    joined = ""
    for memory in (memory.split(TITLE_END)[0] for memory in memories):
        if len(joined) + len(memory) + len(SEPARATOR) > memory_length:
            break
        joined += (SEPARATOR if joined else "") + memory
    return joined


def original_history(history: Sequence[str]) -> str:
    """Turns joined, with a separator behind them, also when there are none."""
    return SEPARATOR.join(history) + SEPARATOR


def original_context(system_prompt: str, memory: str, history: Sequence[str], query: str) -> str:
    """The original's context: no separator between memory and history, and all of the history.

    Args:
        system_prompt: as it stands in its file.
        memory: from `original_memory`.
        history: turns, oldest first.
        query: the turn to answer.
    """
    return system_prompt + SEPARATOR + memory + original_history(history) + query


@dataclass(frozen=True)
class ContextSettings:
    """What goes into a context.

    Attributes:
        memory_number: the most memories.
        memory_length: of all memories together, in units of `count`.
        history_length: of all turns of the history together.
        exclude_own_scene: leave out memories that give the answer away, see `gives_away`.
        count: the length of a text: its characters, or its tokens.
    """

    memory_number: int
    memory_length: int
    history_length: int
    exclude_own_scene: bool
    count: Callable[[str], int] = len


@dataclass(frozen=True)
class Room:
    """What a context has room for, as far as it is said; lengths in tokens or characters.

    Attributes:
        memory_number: the most memories; None: 8.
        memory_length: of all memories together; None: 1000 tokens, or 2000 characters.
        history_length: of all turns of the history together; None: 500 tokens, or 1000 characters.

    Raises:
        SettingError: a negative number.
    """

    memory_number: int | None = None
    memory_length: int | None = None
    history_length: int | None = None

    def __post_init__(self) -> None:
        if any(number is not None and number < 0 for number in astuple(self)):
            raise SettingError(", ".join(vars(self)), "a negative number", "Give 0 or more.")


def context_settings(
    room: Room, unit: Literal["tokens", "characters"], exclude_own_scene: bool, count: Callable[[str], int]
) -> ContextSettings:
    """Settings with nothing left unsaid.

    Args:
        room: what is said.
        unit: of lengths.
        exclude_own_scene: as in `ContextSettings`.
        count: the length of a text, in that unit.
    """
    unsaid = (MEMORY_NUMBER, *ROOM[unit])
    number, memories, history = (b if a is None else a for a, b in zip(astuple(room), unsaid, strict=True))
    return ContextSettings(number, memories, history, exclude_own_scene, count)


@dataclass(frozen=True)
class BuiltContext:
    """A context, and what there is to say about how it came to be.

    Attributes:
        text: the context.
        memories: those in it, nearest to the question first.
        remarks: kinds of things that were left out or changed, each once.
    """

    text: str
    memories: tuple[str, ...]
    remarks: frozenset[str]


def build_context(
    system_prompt: str, memories: Sequence[str], row: Mapping[str, Any], settings: ContextSettings
) -> BuiltContext:
    """A context whose segments can be told apart and whose parts are each held to their length.

    A memory that does not fit is passed over, and the next may fit. Of the history the newest turns stay.

    Args:
        system_prompt: as it stands in its file.
        memories: nearest first; more than are taken, so that some can be passed over.
        row: with `query`, `answer`, `chat_history`.
        settings: what goes into it.
    """
    remarks: set[str] = set()
    taken: list[str] = []
    room = settings.memory_length
    for memory in memories:
        if len(taken) == settings.memory_number:
            break
        length = settings.count(memory + SEPARATOR)
        if settings.exclude_own_scene and gives_away(memory, row["query"], row["answer"]):
            remarks.add("own scene left out of the memories")
        elif length > room:
            remarks.add("memory too long for what room was left")
        else:
            taken.append(memory)
            room -= length
    history = newest(row["chat_history"], settings.history_length, settings.count)
    if len(history) < len(row["chat_history"]):
        remarks.add("history shortened")
    if any(SEPARATOR in part for part in (system_prompt, *taken, *history, row["query"])):
        remarks.add(f"{SEPARATOR} inside a text shortened to ##")
    system, *middle = (segment(part) for part in (system_prompt, *taken, *history))
    context = Context(system, tuple(middle), without_separator(row["query"]))
    return BuiltContext(context.join(context.middle), tuple(taken), frozenset(remarks))


def newest(history: Sequence[str], length: int, count: Callable[[str], int] = len) -> list[str]:
    """The newest turns that fit, whole ones, without a gap between them and the question.

    Args:
        history: turns, oldest first.
        length: of all together, separators included.
        count: the length of a text.
    """
    start = len(history)
    while start and (length := length - count(history[start - 1] + SEPARATOR)) >= 0:
        start -= 1
    return list(history[start:])


def gives_away(memory: str, query: str, answer: str) -> bool:
    """Whether a memory is the scene that a row comes from: its answer stands in it, word for word.

    Punctuation, spaces and the speaker's name do not count. A short answer must stand there together with the question.
    """
    said, asked, scene = _words(_spoken(answer)), _words(_spoken(query)), _words(memory)
    return bool(said) and said in scene and (len(said) >= _SHORT_WORDS or (bool(asked) and asked in scene))


def without_separator(text: str) -> str:
    """A text that stays one segment; `### Heading` becomes `## Heading`."""
    return _SEPARATORS.sub("##", text)


def segment(text: str) -> str:
    """The same, for a text that a separator follows: `C#` and a separator would be a separator and `#`."""
    text = without_separator(text)
    return f"{text} " if text.endswith("#") else text


def _spoken(turn: str) -> str:
    return _SPEAKER.sub("", turn, count=1) if _SPEAKER.match(turn) else turn


@lru_cache(maxsize=10_000)  # of memories, which come again and again
def _words(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()
