from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from character_tokenizer import CharacterTokenizer, read
from hypothesis import given
from hypothesis import strategies as st

from kyon_pl.data.encoding.encode import EncodedRow, EncodeSettings, encode_columns, encode_pairs, preprocess_dialogue
from kyon_pl.data.split import question_hash
from kyon_pl.errors import DataError, SettingError

TOKENIZER = CharacterTokenizer()


def encoded(context: str, target: str, **settings: Any) -> tuple[str, str]:
    """A row as (context, trained) in characters."""
    row = preprocess_dialogue({"context": context, "target": target}, TOKENIZER, **settings)
    assert row.keys() == {"input_ids", "seq_len"}
    return read(row["input_ids"][: row["seq_len"]]), read(row["input_ids"][row["seq_len"] :])


def test_context_takes_the_prefix_and_target_the_end_of_sequence() -> None:
    assert encoded("system###question", "answer") == ("<>system###question", "answer$")
    assert encoded("system###question", "answer", append_eos=False) == ("<>system###question", "answer")


def test_special_signs_in_text_are_text() -> None:
    context, target = encoded("<>$_", "$_")
    assert (context, target) == ("<><>$_", "$_$")


def test_columns_have_the_names_that_are_set() -> None:
    row = preprocess_dialogue({"ask": "q", "say": "a"}, TOKENIZER, context_column="ask", target_column="say")
    assert read(row["input_ids"]) == "<>qa$"


# max_tokens, what is left of sys###mem-1###mem-2###turn###ask? and answer$ (7); the prefix takes 2
SHRUNK = [
    (None, "<>sys###mem-1###mem-2###turn###ask?"),
    (42, "<>sys###mem-1###mem-2###turn###ask?"),
    (41, "<>sys###mem-2###turn###ask?"),
    (34, "<>sys###mem-2###turn###ask?"),
    (33, "<>sys###turn###ask?"),
    (26, "<>sys###turn###ask?"),
    (25, "<>sys###urn###ask?"),
    (23, "<>sys###n###ask?"),
    (22, "<>sys###ask?"),
    (19, "<>sys###ask?"),
]


@pytest.mark.parametrize(("max_tokens", "context"), SHRUNK)
def test_the_oldest_goes_first_and_system_question_target_stay(max_tokens: int | None, context: str) -> None:
    found = encoded("sys###mem-1###mem-2###turn###ask?", "answer", max_tokens=max_tokens)
    assert found == (context, "answer$")


@pytest.mark.parametrize(
    ("context", "target", "settings"),
    [
        ("sys###mem###ask?", "answer", {"max_tokens": 18}),
        ("sys###ask?", "answer", {"max_tokens": 18}),
        ("without separators", "answer", {"max_tokens": 20}),
        ("sys###mem-1###mem-2###turn###ask?", "answer", {"max_tokens": 41, "over_length": "drop"}),
        ("sys###mem-1###mem-2###turn###ask?", "answer", {"max_tokens": 41, "over_length": "error"}),
        ("sys###ask?", "a very long answer" * 3, {"max_tokens": 50}),
    ],
)
def test_a_row_that_cannot_be_cut_is_refused_and_never_cut_in_silence(
    context: str, target: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=rf"too long: \d+ tokens, and max_tokens is {settings['max_tokens']}"):
        encoded(context, target, **settings)


@given(
    segments=st.lists(st.text("ab #\n", max_size=12), min_size=1, max_size=6),
    target=st.text("xyz", min_size=1, max_size=9),
    max_tokens=st.integers(4, 60),
)
def test_whatever_is_cut_system_question_and_target_survive(segments: list[str], target: str, max_tokens: int) -> None:
    context = "###".join(segments)
    row = encode_pairs([(context, target)], TOKENIZER, EncodeSettings(max_tokens=max_tokens))[0]
    system, question = context.split("###")[0], context.split("###")[-1]
    if row.problem:
        fewest = len(context) if "###" not in context else len(system) + len("###") + len(question)
        assert len("<>") + fewest + len(target) + len("$") > max_tokens
        assert row.input_ids == []
        return
    kept, trained = read(row.input_ids[: row.seq_len]), read(row.input_ids[row.seq_len :])
    assert len(row.input_ids) <= max_tokens
    assert trained == target + "$"
    assert kept.startswith("<>" + system)
    assert kept.endswith(question)
    assert row.cut_tokens == len("<>") + len(context) - len(kept)


def test_impossible_settings_are_refused_by_name() -> None:
    with pytest.raises(SettingError, match=r"data\.over_length: there is no 'cut'.*shrink_context, drop, error"):
        encoded("", "", over_length="cut")
    with pytest.raises(SettingError, match=r"data\.max_tokens: 3 has no room"):
        encoded("", "", max_tokens=3)


def test_a_batch_keeps_every_row_at_its_place() -> None:
    columns = {
        "context": ["s###m###q", "", "", "s###q", "s###" + "x" * 99],
        "target": ["a", None, None, None, "a"],
        "input_ids": [[], [7, 8, 9], [], [], []],
        "seq_len": [0, 2, 0, 0, 0],
        "problem": ["", "", "broken JSON: here", "", ""],
        "messages": [[]] * 5,
        "dialogue": [0] * 5,
    }
    rows = encode_columns(columns, TOKENIZER, EncodeSettings(max_tokens=12))
    assert [read(ids) if ids != [7, 8, 9] else ids for ids in rows["input_ids"]] == [
        "<>s###qa$",
        [7, 8, 9],
        "",
        "<>s###q",
        "",
    ]
    assert rows["seq_len"] == [7, 2, 0, 7, 0]
    assert rows["problem"][1:4] == ["", "broken JSON: here", ""]
    assert rows["problem"][4].startswith("too long: 107 tokens")
    assert rows["cut_tokens"] == [4, 0, 0, 0, 0]
    assert rows["question"][0] == rows["question"][3]


def test_ready_made_rows_are_never_shortened() -> None:
    columns = {"context": [""], "target": [None], "messages": [[]], "dialogue": [0]}
    columns |= {"input_ids": [[7] * 9], "seq_len": [3], "problem": [""]}
    assert encode_columns(columns, None, EncodeSettings(max_tokens=9))["input_ids"] == [[7] * 9]
    too_long = encode_columns(columns, None, EncodeSettings(max_tokens=8))
    assert too_long["input_ids"] == [[]]
    assert too_long["problem"] == ["too long: 9 ready-made ids, and max_tokens is 8"]


def test_the_same_question_is_known_behind_other_memories() -> None:
    assert question_hash("s###m###你好 ") == question_hash("other###你好")
    assert question_hash("s###你好") != question_hash("s###你们好")
    assert question_hash([1, 2]) != question_hash([1, 2, 3])


def test_the_prompt_of_several_trained_replies_ends_before_the_last_one() -> None:
    """Labels at 2 and 3, 6, and from 9 on."""
    row = EncodedRow([*range(12)], seq_len=2, masked=(4, 6, 7, 9))
    assert (row.prompt_len, replace(row, masked=()).prompt_len) == (9, 2)
