"""Contexts in mode fixed; test_characters.py has the original's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyon_pl.data.prompt import Context
from kyon_pl.roles.contexts import (
    ContextSettings,
    build_context,
    contains_answer,
    newest_turns,
    segment,
    without_separator,
)

ROOMY = ContextSettings(memory_number=8, memory_length=10_000, history_length=10_000, exclude_own_scene=False)


def row(
    query: str = "阿砚:「开船吗？」", answer: str = "小棹:「开。」", history: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {"query": query, "answer": answer, "chat_history": list(history)}


def settings(**changes: Any) -> ContextSettings:
    return ContextSettings(**{**vars(ROOMY), **changes})


def test_segments_are_separated() -> None:
    built = build_context("system\n", ["m1", "m2"], row("q", history=("h1", "h2")), ROOMY)
    assert built.text == "system\n###m1###m2###h1###h2###q"
    assert not built.remarks
    assert build_context("system\n", [], row("q"), ROOMY).text == "system\n###q"


def test_a_memory_that_does_not_fit_is_skipped() -> None:
    """The original stops there. The length of a memory includes a separator."""
    built = build_context("s", ["x" * 17, "a" * 7, "y" * 8, "b" * 7], row("q"), settings(memory_length=20))
    assert built.text == f"s###{'x' * 17}###q"
    built = build_context("s", ["x" * 18, "a" * 7, "y" * 8, "b" * 7], row("q"), settings(memory_length=20))
    assert built.text == f"s###{'a' * 7}###{'b' * 7}###q"
    assert built.remarks == {"memory too long for the remaining length"}


def test_lengths_are_counted_with_count() -> None:
    """Here in words; the separator is part of the text."""
    words = settings(memory_length=4, history_length=2, count=lambda text: len(text.split()))
    built = build_context("s", ["one two three", "four five", "six"], row("q", history=("a b", "c", "d")), words)
    assert built.text == "s###one two three###six###c###d###q"
    assert built.remarks == {"memory too long for the remaining length", "history shortened"}


def test_the_next_memories_take_the_place_of_the_own_scene() -> None:
    scene = "阿砚问道：开船吗？\n小棹：开 了一辈子的船，哪天不开！"
    exchange = row(answer="小棹:「开了一辈子的船，哪天不开？」")
    built = build_context("s", [scene, "m1", "m2", "m3"], exchange, settings(memory_number=2, exclude_own_scene=True))
    assert built.text == "s###m1###m2###阿砚:「开船吗？」"
    assert built.remarks == {"own scene left out of the memories"}
    kept = build_context("s", [scene, "m1", "m2"], exchange, settings(memory_number=2))
    assert kept.text == f"s###{scene}###m1###阿砚:「开船吗？」"


# memory, query, answer -> whether the memory contains the answer
SCENES = [
    ("A: Off we go? Bo: I row at dawn, never after.", "A:「Off we go?」", "Bo:「I row at dawn; never after!」", True),
    ("Bo: I row at dawn, never after.", "C:「And you?」", "Bo:「I row at dawn, never after.」", True),
    ("Bo: I row at dawn.", "C:「And you?」", "Bo:「I row at dusk, never after.」", False),
    # a short answer occurs in many scenes
    ("A: Off we go? Bo: Yes.", "C:「And you?」", "Bo:「Yes.」", False),
    ("A: Off we go? Bo: Yes.", "A:「Off we go?」", "Bo:「Yes.」", True),
    ("A: Off we go? Bo: Yes.", "A:「……」", "Bo:「Yes.」", False),
    ("Bo: …", "A:「Off we go?」", "Bo:「……」", False),
]


@pytest.mark.parametrize(("memory", "query", "answer", "expected"), SCENES)
def test_the_own_scene_is_the_one_with_the_answer(memory: str, query: str, answer: str, expected: bool) -> None:
    assert contains_answer(memory, query, answer) is expected


def test_the_history_keeps_its_newest_turns() -> None:
    """Whole turns, without gaps."""
    history = ["a", "b" * 20, "c" * 4, "d" * 4]
    assert newest_turns(history, 14) == ["c" * 4, "d" * 4]
    assert newest_turns(history, 13) == ["d" * 4]
    assert newest_turns(history, 37) == history[1:]
    assert newest_turns(history, 41) == history
    assert newest_turns(history, 0) == []
    assert newest_turns([], 10) == []


def test_a_heading_is_shortened_and_stays_one_segment() -> None:
    built = build_context("### Who\nBo", ["C#", "a###b"], row("#tag ####"), ROOMY)
    assert built.text == "## Who\nBo###C# ###a##b####tag ##"
    assert Context.parse(built.text) == Context("## Who\nBo", ("C# ", "a##b"), "#tag ##")
    assert built.remarks == {"### inside a text shortened to ##"}


texts = st.text(alphabet=st.sampled_from("#ab「\n"), max_size=12)


@given(texts, st.lists(texts, max_size=12), st.lists(texts, max_size=6), texts, st.integers(0, 40), st.booleans())
def test_a_context_holds_what_it_should_and_its_parts_keep_to_their_length(
    system: str, memories: list[str], history: list[str], query: str, length: int, exclude: bool
) -> None:
    held = ContextSettings(3, length, length, exclude)
    exchange = row(query, "B:「aab」", tuple(history))
    context = Context.parse(build_context(system, memories, exchange, held).text)
    assert context.system == segment(system)
    assert context.question == without_separator(query)
    kept = newest_turns(history, length)
    assert sum(len(turn) + 3 for turn in kept) <= length
    shown = list(context.middle[: len(context.middle) - len(kept)])
    assert list(context.middle[len(shown) :]) == [segment(turn) for turn in kept]
    assert len(shown) <= 3
    # nearest first: the memories are in order
    rest = iter([segment(memory) for memory in memories])
    assert all(memory in rest for memory in shown)
