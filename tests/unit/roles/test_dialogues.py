"""Dialogues to rows, by our rule and by the original's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from role_folder import dialogue, write_lines

from kyon_pl.data import read_jsonl_file
from kyon_pl.roles.dialogues import (
    DialogueRow,
    Dropped,
    ReadRow,
    Turn,
    original_rows_of_dialogue,
    read_dialogue_rows,
    rows_of_dialogue,
)

OPENING, AFTER_OWN, NO_TURN = (
    "a turn that opens the dialogue, so it answers nothing",
    "a turn directly after another turn of the role",
    "no turn of the role in the dialogue",
)


def turns(names: str) -> list[Turn]:
    """One turn per letter: the speaker; the text is the turn's number."""
    return [Turn(name, str(i)) for i, name in enumerate(names)]


def short(rows: Iterator[DialogueRow | Dropped]) -> list[str]:
    """`history>query>answer`, or the reason."""
    return [
        row.reason
        if isinstance(row, Dropped)
        else ">".join((" ".join(row["chat_history"]), row["query"], row["answer"]))
        for row in rows
    ]


# speakers, B is the role -> the original's rows, our rows
DIALOGUES = {
    "aB": ([">a:0>B:1"], [">a:0>B:1"]),
    # the turn before the query is lost
    "abB": ([">b:1>B:2"], ["a:0>b:1>B:2"]),
    "abcB": (["a:0>c:2>B:3"], ["a:0 b:1>c:2>B:3"]),
    # an opening turn answers the last one
    "Bab": (["B:0>b:2>B:0"], [OPENING]),
    "B": ([">B:0>B:0"], [OPENING]),
    # only the first of consecutive turns counts
    "aBBbB": ([">a:0>B:1", AFTER_OWN, "a:0 B:1>b:3>B:4"], [">a:0>B:1", AFTER_OWN, "a:0 B:1 B:2>b:3>B:4"]),
    "BBaB": (["B:0 B:1>B:3>B:0", AFTER_OWN, "B:0>a:2>B:3"], [OPENING, AFTER_OWN, "B:0 B:1>a:2>B:3"]),
    "ab": ([NO_TURN], [NO_TURN]),
}


@pytest.mark.parametrize("names", DIALOGUES)
def test_rows_of_a_dialogue(names: str) -> None:
    original, ours = DIALOGUES[names]
    assert short(original_rows_of_dialogue(turns(names), ["B"])) == original
    assert short(rows_of_dialogue(turns(names), ["B"])) == ours


def test_a_name_begins_with_an_alias() -> None:
    """The original uses a name that starts with two aliases twice, once for each."""
    said = [Turn("a", "0"), Turn("Bo", "1"), Turn("Bob（笑）", "2"), Turn("", "3"), Turn("Robo", "4")]
    assert short(original_rows_of_dialogue(said, ["Bo", "Bob"])) == [">a:0>Bo:1", AFTER_OWN, ">Bo:1>Bob（笑）:2"]
    assert short(rows_of_dialogue(said, ["Bo", "Bob"])) == [">a:0>Bo:1", AFTER_OWN]
    assert short(rows_of_dialogue(said, ["Robo"])) == ["a:0 Bo:1 Bob（笑）:2>3>Robo:4"]  # no speaker: no ":3"


@given(st.lists(st.tuples(st.sampled_from(["B", "B2", "a", ""]), st.text()), min_size=1, max_size=12))
def test_no_turn_is_altered_lost_or_invented(said: list[tuple[str, str]]) -> None:
    """By both rules. Our rows hold all turns before them. Rows and dropped turns add up."""
    dialogue = [Turn(*turn) for turn in said]
    answers = [f"{turn.role}:{turn.text}" for turn in dialogue if turn.role.startswith("B")]
    for rule in (rows_of_dialogue, original_rows_of_dialogue):
        rows = list(rule(dialogue, ["B"]))
        assert len(rows) == max(1, len(answers))
        assert all(row["answer"] in answers for row in rows if not isinstance(row, Dropped))
    lines = [f"{turn.role}:{turn.text}" if turn.role else turn.text for turn in dialogue]
    for row in rows_of_dialogue(dialogue, ["B"]):
        if not isinstance(row, Dropped):
            before = [*row["chat_history"], row["query"], row["answer"]]
            assert before == lines[: len(before)]


def rows_in(path: Path, mode: str = "fixed") -> list[ReadRow]:
    return list(read_dialogue_rows(path, ["B"], mode))  # type: ignore[arg-type]


READY = {"query": "a:}{", "answer": "B:1", "chat_history": ["c:0"], "embedding": [1.0, 2], "source": "s"}
PLAIN = {"query": "a:2", "answer": "B:3"}


def test_all_rows_on_one_line_are_read(tmp_path: Path) -> None:
    """The original splits after each brace, and loses rows with a brace in their text."""
    path = write_lines(tmp_path / "one_line.jsonl", [READY, PLAIN, READY], end="")
    assert "\n" not in path.read_text(encoding="utf-8")
    plain = {**PLAIN, "chat_history": [], "embedding": [], "source": ""}
    assert [made.row for made in rows_in(path)] == [READY, plain, READY]
    assert [made.number for made in rows_in(path)] == [1, 2, 3]
    assert len(read_jsonl_file(path)) == 3
    kept = [made.row for made in rows_in(path, "original") if not isinstance(made.row, Dropped)]
    assert kept == [plain]


def test_dialogues_carry_source_and_number(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [dialogue("a:0", "B:1", "c:2", "B:3", source="x"), dialogue("a:4", "B:5")])
    for mode, sources in (("fixed", ["x", "x", "invented"]), ("original", ["story-synthesised"] * 3)):
        made = rows_in(path, mode)
        assert [(m.number, m.of_dialogue) for m in made] == [(1, True), (1, True), (2, True)]
        assert [m.row["source"] for m in made if not isinstance(m.row, Dropped)] == sources


BAD = {
    '{"dialogue": []}': "no list of turns in 'dialogue'",
    '{"dialogue": "a:0"}': "no list of turns in 'dialogue'",
    '{"dialogue": [{"role": "B"}]}': "a turn without 'role' and 'text'",
    '{"dialogue": [{"role": "B", "text": null}]}': "a turn without 'role' and 'text'",
    '{"query": "a"}': "no object with 'dialogue', or with 'query' and 'answer'",
    "[]": "no object with 'dialogue', or with 'query' and 'answer'",
    '{"query": "a", "answer": 1}': "no text in 'query' or 'answer'",
    '{"query": "a", "answer": "b", "chat_history": "c"}': "no list of texts in 'chat_history'",
    '{"query": "a", "answer": "b", "embedding": ["c"]}': "no list of numbers in 'embedding'",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_object_is_dropped_with_its_reason(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{line}\n{{"query": "a", "answer": "b"}}\n{{"que', encoding="utf-8")
    first, good, broken = rows_in(path)
    assert first.row == Dropped(BAD[line])
    assert not isinstance(good.row, Dropped)
    assert isinstance(broken.row, Dropped)
    assert broken.row.reason.startswith("broken JSON")
