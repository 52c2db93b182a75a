"""Contexts of rows, built from system prompt, memories, history and question, by our rules and by the original's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

from kyon_pl.data.prompt import SEPARATOR, Context
from kyon_pl.errors import SettingError
from kyon_pl.roles.role import TITLE_END
from kyon_pl.runs.prompt_format import Mode, Unit

MEMORY_NUMBER = 8
DEFAULT_LENGTHS = {"characters": (2000, 1000), "tokens": (1000, 500)}  # of memories, and of the history
_SHORT_ANSWER = 8  # characters; a shorter answer ("Yes, of course") occurs in many scenes that are not its own
_SPEAKER = re.compile(r"[^:：\n]{0,40}[:：]")
_SEPARATORS = re.compile(f"{SEPARATOR}+")


@dataclass(frozen=True)
class ContextLimits:
    """Limits of a context, as set by the user; lengths are in tokens or characters.

    Attributes:
        memory_number: maximum number of memories; None: 8.
        memory_length: total length of all memories; None: 1000 tokens, or 2000 characters.
        history_length: total length of the history; None: 500 tokens, or 1000 characters.

    Raises:
        SettingError: a negative number.
    """

    memory_number: int | None = None
    memory_length: int | None = None
    history_length: int | None = None

    def __post_init__(self) -> None:
        if any(number is not None and number < 0 for number in astuple(self)):
            raise SettingError(", ".join(vars(self)), "a negative number", "Give 0 or more.")


@dataclass(frozen=True)
class ContextSettings:
    """How a context is built.

    Attributes:
        memory_number: maximum number of memories.
        memory_length: total length of all memories, in units of `count`.
        history_length: total length of the history, in units of `count`.
        exclude_own_scene: leave out memories that contain the answer, see `contains_answer`.
        count: the length of a text, in characters or tokens.
        mode: `original`: as by `original_context`, which uses `memory_number` and `memory_length` only.
        unit: of `count`.
    """

    memory_number: int
    memory_length: int
    history_length: int
    exclude_own_scene: bool
    count: Callable[[str], int] = len
    mode: Mode = "fixed"
    unit: Unit = "characters"

    @property
    def candidates(self) -> int:
        """Number of memories to rank; in mode fixed twice as many, to replace those that are skipped."""
        return self.memory_number if self.mode == "original" else 2 * self.memory_number


def context_settings(
    limits: ContextLimits,
    unit: Unit,
    exclude_own_scene: bool,
    count: Callable[[str], int],
    mode: Mode = "fixed",
) -> ContextSettings:
    """Settings from limits, with defaults filled in.

    Args:
        limits: as set by the user.
        unit: of the lengths.
        exclude_own_scene: see `ContextSettings`.
        count: the length of a text in that unit.
        mode: see `ContextSettings`.
    """
    defaults = (MEMORY_NUMBER, *DEFAULT_LENGTHS[unit])
    number, memories, history = (b if a is None else a for a, b in zip(astuple(limits), defaults, strict=True))
    return ContextSettings(number, memories, history, exclude_own_scene, count, mode, unit)


@dataclass(frozen=True)
class BuiltContext:
    """A context, and how it was built.

    Attributes:
        text: the context.
        memories: the memories in it, in the order of the context.
        remarks: what was left out or changed, each kind once.
    """

    text: str
    memories: tuple[str, ...]
    remarks: frozenset[str]


def build_context(
    system_prompt: str,
    memories: Sequence[str],
    row: Mapping[str, Any],
    settings: ContextSettings,
    ranks: Mapping[str, int] | None = None,
) -> BuiltContext:
    """Build a context of separate segments, with memories and history within their lengths.

    A memory that does not fit is skipped; a later one can still fit. The history keeps its newest turns.

    Args:
        system_prompt: the text of its file.
        memories: nearest first, as many as `settings.candidates`.
        row: with `query`, `answer`, `chat_history`.
        settings: how to build it.
        ranks: place of each memory in an order of the role, in which the chosen memories are put; memories without one
            come last. None: nearest first.
    """
    if settings.mode == "original":
        memory = original_memory(memories, settings.memory_length)
        text = original_context(system_prompt, memory, row["chat_history"], row["query"])
        return BuiltContext(text, tuple(filter(None, memory.split(SEPARATOR))), frozenset())
    remarks: set[str] = set()
    kept: list[str] = []
    remaining = settings.memory_length
    for memory in memories:
        if len(kept) == settings.memory_number:
            break
        length = settings.count(memory + SEPARATOR)
        if settings.exclude_own_scene and contains_answer(memory, row["query"], row["answer"]):
            remarks.add("own scene left out of the memories")
        elif length > remaining:
            remarks.add("memory too long for the remaining length")
        else:
            kept.append(memory)
            remaining -= length
    if ranks is not None:
        kept.sort(key=lambda memory: ranks.get(memory, len(ranks)))
    history = newest_turns(row["chat_history"], settings.history_length, settings.count)
    if len(history) < len(row["chat_history"]):
        remarks.add("history shortened")
    if any(SEPARATOR in part for part in (system_prompt, *kept, *history, row["query"])):
        remarks.add(f"{SEPARATOR} inside a text shortened to ##")
    system, *middle = (segment(part) for part in (system_prompt, *kept, *history))
    context = Context(system, tuple(middle), without_separator(row["query"]))
    return BuiltContext(context.join(context.middle), tuple(kept), frozenset(remarks))


def newest_turns(history: Sequence[str], length: int, count: Callable[[str], int] = len) -> list[str]:
    """The newest whole turns that fit, without gaps.

    Args:
        history: turns, oldest first.
        length: total length of the turns, including separators.
        count: the length of a text.
    """
    start = len(history)
    while start and (length := length - count(history[start - 1] + SEPARATOR)) >= 0:
        start -= 1
    return list(history[start:])


def contains_answer(memory: str, query: str, answer: str) -> bool:
    """Whether a memory contains a row's answer word for word, so that it is the scene of the row.

    Punctuation, spaces and the speaker's name are ignored. A short answer must occur together with the query.
    """
    target, question, scene = _letters(_without_speaker(answer)), _letters(_without_speaker(query)), _letters(memory)
    return bool(target) and target in scene and (len(target) >= _SHORT_ANSWER or (bool(question) and question in scene))


def without_separator(text: str) -> str:
    """A text that stays one segment: `### Heading` becomes `## Heading`."""
    return _SEPARATORS.sub("##", text)


def segment(text: str) -> str:
    """A text that stays one segment before a separator: a `#` at its end gets a space after it."""
    text = without_separator(text)
    return f"{text} " if text.endswith("#") else text


def _without_speaker(turn: str) -> str:
    return _SPEAKER.sub("", turn, count=1) if _SPEAKER.match(turn) else turn


@lru_cache(maxsize=10_000)  # memories are compared with many rows
def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()


def original_memory(memories: Sequence[str], memory_length: int) -> str:
    """The memories before the first that does not fit, joined, as in the original.

    The length of a separator is added to each, also to the first. A memory ends at a second `｜｜｜`, since the
    original takes the text between the first two.

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
    """Turns joined, with a separator after the last one, as in the original; a separator if there are no turns."""
    return SEPARATOR.join(history) + SEPARATOR


def original_context(system_prompt: str, memory: str, history: Sequence[str], query: str) -> str:
    """A context of the original: no separator between memories and history, and the whole history.

    Args:
        system_prompt: the text of its file.
        memory: from `original_memory`.
        history: turns, oldest first.
        query: the turn to answer.
    """
    return system_prompt + SEPARATOR + memory + original_history(history) + query
