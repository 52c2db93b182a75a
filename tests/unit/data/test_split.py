"""No question and no dialogue on both sides, no target altered, and nothing lost on the way."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from character_tokenizer import CharacterTokenizer, read
from hypothesis import given, settings
from hypothesis import strategies as st

from kyon_pl.data import DialogueDataModule
from kyon_pl.data.split import dialogue_hash, group_rows, split_by_question

ROW = st.fixed_dictionaries(
    {
        "question": st.integers(0, 30),
        "dialogue": st.sampled_from([None, *(f"talk {i}" for i in range(12))]),
        "earlier": st.lists(st.integers(0, 30), max_size=2),  # questions of a conversation
        "reply": st.sampled_from(["yes", "no", "「」", "la " * 40, ""]),
    }
)


def array(values: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


@given(st.lists(ROW, min_size=1, max_size=40), st.floats(0.0, 0.6))
def test_groups_are_what_questions_and_dialogues_tie_together(rows: list[dict[str, Any]], share: float) -> None:
    """Against the groups that grow by looking again and again."""
    told = [
        {("question", row["question"]), *(("question", q) for q in row["earlier"])}
        | ({row["dialogue"]} if row["dialogue"] else set())
        for row in rows
    ]
    expected: list[set[int]] = []
    for number in range(len(rows)):
        touching = [group for group in expected if any(told[number] & told[other] for other in group)]
        expected = [group for group in expected if group not in touching] + [{number}.union(*touching)]
    questions = array([row["question"] for row in rows])
    pairs = [(number, question) for number, row in enumerate(rows) for question in row["earlier"]]
    others = array([number for number, _ in pairs]), array([question for _, question in pairs])
    groups = group_rows(questions, array([dialogue_hash(row["dialogue"]) for row in rows]), others)
    found = [{*np.flatnonzero(groups == group).tolist()} for group in {*groups.tolist()}]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))

    train, validation = split_by_question(questions, share, groups)
    assert sorted([*train, *validation]) == list(range(len(rows)))
    assert not {*groups[train]} & {*groups[validation]}
    assert len(train)
    assert share or not len(validation)


def line(row: dict[str, Any]) -> dict[str, Any]:
    if row["earlier"]:
        turns = [text for question in row["earlier"] for text in (f"q{question}?", "so")]
        turns += [f"q{row['question']}?", row["reply"]]
        roles = ("user", "assistant") * len(turns)
        messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
        return {"messages": messages, "dialogue": row["dialogue"]}
    return {"context": f"sys###memory###q{row['question']}?", "target": row["reply"], "dialogue": row["dialogue"]}


@settings(max_examples=15, deadline=None)
@given(st.lists(ROW, min_size=6, max_size=40), st.sampled_from(["last", "all"]), st.sampled_from([60, 150]))
def test_from_files_to_both_sides(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], train_turns: str, max_tokens: int
) -> None:
    rows = [*rows, {"question": 99, "dialogue": None, "earlier": [], "reply": "fine"}]  # a file needs a good row
    folder = tmp_path_factory.mktemp("rows")
    (folder / "rows.jsonl").write_text("".join(json.dumps(line(row)) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kyon_pl.data.dialogue_data.load_tokenizer", lambda *_: CharacterTokenizer())
        data = DialogueDataModule(
            str(folder / "rows.jsonl"),
            validation_share=0.3,
            train_turns=train_turns,  # type: ignore[arg-type]
            max_tokens=max_tokens,
            drop=["loop"],
            workers=0,
            processes=1,
            cache_dir=str(folder / "cache"),
        )
        data.setup("fit")
    train, validation = data.rows["train"], data.rows["validation"]
    table = train.table
    dropped = {*table.problems, *np.flatnonzero(table.odd & 2).tolist()}  # loops are the second kind
    assert len(train) + len(validation) + len(dropped) == len(rows)
    assert {*train.numbers.tolist(), *validation.numbers.tolist(), *dropped} == {*range(len(rows))}

    def asked(number: int) -> set[int]:
        return {rows[number]["question"]} | ({*rows[number]["earlier"]} if train_turns == "all" else set())

    sides = [{q for n in side.numbers for q in asked(n)} for side in (train, validation)]
    talks = [{rows[n]["dialogue"] for n in side.numbers} - {None} for side in (train, validation)]
    assert not sides[0] & sides[1]
    assert not talks[0] & talks[1]
    for side in (train, validation):
        for place, number in enumerate(side.numbers.tolist()):
            row = side[place]
            start = row["masked"][-1] if len(row["masked"]) else row["seq_len"]
            assert read(row["input_ids"][start:]) == rows[number]["reply"] + "$"


def test_dialogues_are_kept_whole_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every question is asked once: without the column, most dialogues would lie on both sides."""
    monkeypatch.setattr("kyon_pl.data.dialogue_data.load_tokenizer", lambda *_: CharacterTokenizer())
    lines = [{"context": f"s###q{i}", "target": "a", "dialogue": f"talk {i // 10}"} for i in range(200)]

    def talks_of(name: str, lines: list[dict[str, Any]]) -> list[set[int]]:
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        data = DialogueDataModule(
            str(tmp_path / name), validation_share=0.1, workers=0, processes=1, cache_dir=str(tmp_path / "cache")
        )
        data.setup("fit")
        return [{*(data.rows[use].numbers // 10).tolist()} for use in ("train", "validation")]  # type: ignore[index]

    caplog.set_level(logging.INFO, "kyon_pl.data")
    train, validation = talks_of("told.jsonl", lines)
    assert not train & validation
    assert 2 <= len(validation) <= 3
    assert f"none of the {len(validation)} validation dialogues is trained on" in caplog.text
    train, validation = talks_of("untold.jsonl", [line | {"dialogue": None} for line in lines])
    assert train & validation
    assert "no validation rows" not in caplog.text
    talks_of("one.jsonl", [line | {"dialogue": "one"} for line in lines])
    assert "no validation rows: there are too few rows, or nearly all are in one group" in caplog.text


def test_a_question_that_most_dialogues_share_does_not_take_them_all_along() -> None:
    questions = array([0, *range(1, 100)])
    groups = array([0] * 60 + [*range(60, 100)])  # one group of 60 questions, whose hash comes first
    train, validation = split_by_question(questions, 0.1, groups)
    assert len(validation) == 10
    assert {*range(60)} <= {*train.tolist()}
    together = split_by_question(questions, 0.1, array([0] * 100))
    assert [len(part) for part in together] == [100, 0]


@pytest.mark.parametrize("value", [None, "", "  ", float("nan")])
def test_what_says_nothing_of_a_dialogue_ties_nothing(value: object) -> None:
    assert dialogue_hash(value) == 0


def test_any_value_names_a_dialogue() -> None:
    values = ["1", 1, 0, ["a"], "\ud83d", {"a": 1}]
    assert len({dialogue_hash(value) for value in values} - {0}) == len(values)
