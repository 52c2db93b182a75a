"""Sources mixed by weight: which rows an epoch has, in which order, and that a run finds its place in them again."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from character_tokenizer import CharacterTokenizer

from kyon_pl.data import DialogueDataModule
from kyon_pl.data.split import Mix
from kyon_pl.errors import SettingError

SIZES = {"a": 10, "b": 20, "c": 7}
Make = Callable[..., DialogueDataModule]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Over the sources `a`, `b` and the folder `c`."""
    monkeypatch.setattr("kyon_pl.data.dialogue_data.load_tokenizer", lambda *_: CharacterTokenizer())
    for name, size in SIZES.items():
        rows = [{"context": f"s###{name}{i}?", "target": f"{name}{i}"} for i in range(size)]
        lines = [json.dumps(row) + "\n" for row in rows]
        (tmp_path / "c").mkdir(exist_ok=True)
        parts = {"c/1": lines[:3], "c/2": lines[3:]} if name == "c" else {name: lines}
        for file, part in parts.items():
            (tmp_path / f"{file}.jsonl").write_text("".join(part))

    def make(sources: tuple[str, ...] = ("a.jsonl", "b.jsonl", "c"), **more: Any) -> DialogueDataModule:
        defaults = {"validation_share": 0.0, "workers": 0, "processes": 1, "cache_dir": str(tmp_path / "cache")}
        data = DialogueDataModule([str(tmp_path / name) for name in sources], **defaults | more)
        data.setup("fit")
        return data

    return make


def rows_of(data: DialogueDataModule, batches: Any) -> list[str]:
    rows = data.rows["train"]
    numbers = [int(rows.numbers[place]) for batch in batches for place in batch.row_numbers]
    return [rows.table.rows.dataset[number]["target"] for number in numbers]


def test_weights_say_how_often_rows_appear(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kyon_pl.data")
    data = make(source_weights=[1, 2.5, 2])
    found = rows_of(data, data.train_dataloader())
    counts = Counter(found)
    assert {counts[f"a{i}"] for i in range(10)} == {1}
    assert {counts[f"c{i}"] for i in range(7)} == {2}  # both files of the folder
    assert Counter(counts[f"b{i}"] for i in range(20)) == {2: 10, 3: 10}
    assert data.tokens_per_epoch == sum(batch.tokens for batch in data.train_dataloader())
    texts = [message.split("/")[-1] for message in caplog.messages if "weight" in message]
    assert texts == [
        "a.jsonl: 10 training rows, weight 1, 1× per epoch",
        "b.jsonl: 20 training rows, weight 2.5, 2.5× per epoch",
        "c: 7 training rows, weight 2, 2× per epoch",
    ]
    # relative to each other, drawn by the seed, and shuffled among each other
    again = make(source_weights=[0.2, 0.5, 0.4])
    assert rows_of(again, again.train_dataloader()) == found
    other = make(source_weights=[1, 2.5, 2], seed=1)
    assert Counter(rows_of(other, other.train_dataloader())) != counts
    padded = make(source_weights=[1, 2.5, 2], batching="padded")
    assert len({text[0] for text in rows_of(padded, padded.train_dataloader())[:8]}) > 1


def test_without_shuffling_sources_are_spread_evenly(make: Make) -> None:
    data = make(("a.jsonl", "b.jsonl"), source_weights=[4, 1], shuffle=False, batching="padded", rows_per_batch=1)
    found = rows_of(data, data.train_dataloader())
    assert Counter(text[0] for text in found) == {"a": 40, "b": 20}
    assert [text for text in found if text[0] == "a"] == [f"a{i}" for i in range(10)] * 4
    assert {Counter(text[0] for text in found[start : start + 3])["a"] for start in range(0, 60, 3)} == {2}


def test_equal_weights_are_the_rows_without_weights(make: Make) -> None:
    plain, weighted = make(), make(source_weights=[3, 3, 3])
    assert sorted(plain.rows["train"].numbers) == sorted(weighted.rows["train"].numbers)


def test_a_position_is_found_again_in_the_middle_of_an_epoch(make: Make) -> None:
    settings = {"source_weights": [1, 3, 1], "max_tokens": 30, "tokens_per_batch": 60}
    data = make(**settings)
    whole = rows_of(data, data.train_dataloader())
    loader = data.train_dataloader()
    loader.batch_sampler.step = 5
    state, rest = json.loads(json.dumps(loader.state_dict())), rows_of(data, loader)
    again = make(**settings)
    loader = again.train_dataloader()
    loader.load_state_dict(state)
    assert rows_of(again, loader) == rest == whole[-len(rest) :]
    assert len(rest) < len(whole)


def test_validation_rows_are_taken_first_and_stand_there_once(make: Make) -> None:
    data = make(source_weights=[1, 3, 1], validation_share=0.2)
    validation, train = data.rows["validation"].numbers, data.rows["train"].numbers
    assert len(validation) == len({*validation}) == 7
    assert not {*validation} & {*train}
    assert len({*validation, *train}) == 37


WRONG = {
    "too few": ([1, 2], "2 weights for 3 sources"),
    "zero": ([1, 0, 1], "0 is not a valid weight"),
    "negative": ([1, -1, 1], "-1 is not a valid weight"),
    "NaN": ([1, math.nan, 1], "nan is not a valid weight"),
    "infinite": ([1, math.inf, 1], "inf is not a valid weight"),
    "far apart": ([1, 2000, 1], "2000 is more than 1,000 times 1"),
    "none": ([], "0 weights for 3 sources"),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_say_nothing_are_refused(make: Make, name: str) -> None:
    weights, found = WRONG[name]
    with pytest.raises(SettingError, match=rf"data\.source_weights: {found}"):
        make(source_weights=weights)


def test_a_fraction_that_is_no_exact_number_is_rounded_to_rows() -> None:
    numbers, sources = np.arange(30), np.repeat([0, 1], [10, 20])
    mixed = Mix((0.1, 0.3), 0).rows_of_an_epoch(numbers, sources)  # 0.3 / 0.1 is 2.9999999999999996
    assert np.bincount(mixed).tolist() == [1] * 10 + [3] * 20
