"""Odd rows: counted always, left out if a setting says so, and listed; nothing else is lost."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from character_tokenizer import CharacterTokenizer, read
from hypothesis import given, settings
from hypothesis import strategies as st

from kyon_pl.data import DialogueDataModule
from kyon_pl.data.reading.quality import Seen, bits, has_loop, names, oddities, strip_speaker
from kyon_pl.errors import SettingError

GOOD = {"context": "sys###where is the lamp?", "target": "Bo:「at the quay」"}
LOOP = {"context": "sys###sing!", "target": "la la " * 20}
SIGNS = {"context": "sys###why?", "target": "Bo:「……！？」"}
LEAK = {"context": "sys###Bo said: at the quay###where?", "target": "Bo:「at the quay」"}
EMPTY = {"context": "sys###why?", "target": "「」"}
ROWS = [GOOD, LOOP, GOOD, SIGNS, LEAK, EMPTY, GOOD]


@pytest.fixture(autouse=True)
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kyon_pl.data.dialogue_data.load_tokenizer", lambda *_: CharacterTokenizer())


def fitted(folder: Path, rows: list[dict[str, str]], **more: object) -> DialogueDataModule:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DialogueDataModule(
        str(file), validation_share=0.0, workers=0, processes=1, cache_dir=str(folder / "cache"), **more
    )  # type: ignore[arg-type]
    data.setup("fit")
    return data


def test_all_kinds_are_counted_and_kept_unless_a_setting_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kyon_pl")
    data = fitted(tmp_path, ROWS)
    assert data.rows["train"].numbers.tolist() == [0, 1, 2, 3, 4, 6]
    assert "data: 2 exact duplicates of an earlier row (kept; set data.drop: [duplicate] to drop them)" in caplog.text
    for words in (
        "data: 1 targets that repeat",
        "data: 1 targets of punct",
        "data: 1 targets that are copied from",
    ):
        assert words in caplog.text
    listed = tmp_path / "lists/bad.jsonl"
    kinds = ["duplicate", "loop", "punctuation"]
    assert fitted(tmp_path, ROWS, drop=kinds, bad_rows_file=str(listed)).rows["train"].numbers.tolist() == [0, 4]
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [(row["line"], row["odd"], row["left_out"]) for row in rows] == [
        (2, ["loop"], True),
        (3, ["duplicate"], True),
        (4, ["punctuation"], True),
        (5, ["leak"], False),
        (6, [], True),
        (7, ["duplicate"], True),
    ]
    assert rows[4]["problem"] == "nothing said in 'target': '「」' (str)"
    assert {row["file"] for row in rows} == {str(tmp_path / "rows.jsonl")}
    assert f"6 bad and odd rows written to {listed}" in caplog.text
    with pytest.raises(SettingError, match=r"data.drop: there is no 'short'. Choose among: duplicate, loop"):
        fitted(tmp_path, ROWS, drop=["short"])


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(ROWS), min_size=1, max_size=12), st.sets(st.sampled_from(names(15))))
def test_what_is_dropped_and_what_is_kept_is_what_was_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], drop: set[str]
) -> None:
    """And no target is altered on the way; the first of equal rows stays."""
    rows = [GOOD, *rows]
    data = fitted(tmp_path_factory.mktemp("rows"), rows, drop=sorted(drop))
    train, table = data.rows["train"], data.rows["train"].table
    left_out = [row for row in table.bad_and_odd_rows() if row["left_out"]]
    assert sorted([*(train.numbers + 1).tolist(), *(row["line"] for row in left_out)]) == [*range(1, len(rows) + 1)]
    for place, number in enumerate(train.numbers.tolist()):
        row = train[place]
        assert read(row["input_ids"][row["seq_len"] :]) == rows[number]["target"] + "$"


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([1] * 32, True),
        ([1] * 31, False),
        ([*range(100), *[1, 2, 3, 4, 5, 6, 7, 8] * 4], True),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9] * 9, False),  # nine tokens, as a refrain may have
        ([*range(1000)], False),
        ([], False),
    ],
)
def test_loops(ids: list[int], loops: bool) -> None:
    assert has_loop(ids) is loops
    assert names(oddities("", None, ids)) == (["loop"] if loops else [])


@given(st.lists(st.integers(0, 3), max_size=70))
def test_a_loop_is_what_a_plain_reading_of_its_definition_finds(ids: list[int]) -> None:
    found = any(
        all(ids[i] == ids[i + period] for i in range(start, start + 32 - period))
        for start in range(len(ids) - 31)
        for period in range(1, 9)
    )
    assert has_loop(ids) is found


def test_the_speaker_is_stripped() -> None:
    assert strip_speaker("小棹:「湾口。」") == "湾口。"
    assert strip_speaker("湾口。") == "湾口。"
    assert strip_speaker("「一:二」") == "二"
    assert not np.any([oddities("at the quay", target, [1]) for target in ("quayside", "at", "42")])
    assert oddities("上次说湾口有灯塔。###哪里？", "小棹:「湾口有灯塔。」", [1]) == bits(["leak"])


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), max_size=40))
def test_numbers_that_have_come_before(numbers: list[int]) -> None:
    """Also once they are sorted in: here every three, and else every 50,000."""
    seen = Seen(unsorted=3)
    assert [seen.before(number) for number in numbers] == [n in numbers[:i] for i, n in enumerate(numbers)]
