"""The original's contexts, written by hand; tests/parity compares whole files of real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from role_folder import PROMPT, write_role
from torch.utils.data import DataLoader

from kyon_pl.data import CharacterDataset, collate_fn
from kyon_pl.errors import DataError, MissingFileError


def row(history: tuple[str, ...] = (), embedding: tuple[float, ...] = (1.0, 0.0)) -> dict[str, Any]:
    fields = {"query": "阿砚:「开船吗？」", "answer": "小棹:「开。」", "source": "invented"}
    return {**fields, "chat_history": list(history), "embedding": list(embedding)}


def item(tmp_path: Path, memories: dict[str, list[float]], **fields: Any) -> dict[str, Any]:
    return CharacterDataset([row(**fields)], write_role(tmp_path / "zhao", memories))[0]


def test_an_item_has_the_keys_and_values_of_the_original(tmp_path: Path) -> None:
    """Nearest first by raw dot product, not by angle; no separator between memory and history."""
    memories = {"远｜｜｜远的": [0.1, 9.0], "近｜｜｜近的": [0.5, 0.0], "长｜｜｜长的": [3.0, 9.0]}
    found = item(tmp_path, memories, history=("阿砚:「早。」", "小棹:「早。」"))
    assert torch.equal(found.pop("embedding"), torch.tensor([1.0, 0.0]))
    assert found == {
        "query": "阿砚:「开船吗？」",
        "system_prompt": PROMPT,
        "retrieved_memory": "长的###近的###远的",
        "chat_history": "阿砚:「早。」###小棹:「早。」###",
        "answer": "小棹:「开。」",
        "source": "invented",
        "input": f"{PROMPT}###长的###近的###远的阿砚:「早。」###小棹:「早。」###阿砚:「开船吗？」",
    }


# memories, nearest first -> retrieved_memory
QUIRKS = {
    "the first is too long by one": ({"a": "x" * 1998, "b": "short"}, ""),
    "the first just fits": ({"a": "x" * 1997, "b": "short"}, "x" * 1997),
    "nothing behind the first that does not fit": ({"a": "first", "b": "x" * 1993, "c": "third"}, "first"),
    "the second just fits": ({"a": "x" * 1000, "b": "y" * 997}, "x" * 1000 + "###" + "y" * 997),
    "the second is too long by one": ({"a": "x" * 1000, "b": "y" * 998, "c": "z"}, "x" * 1000),
    "a separator inside a memory": ({"a": "one###two", "b": "three"}, "one###two###three"),
    "a second title mark ends it": ({"a": "text｜｜｜lost", "b": "three"}, "text###three"),
    "an empty memory takes no separator": ({"a": "", "b": "three"}, "three"),
}


@pytest.mark.parametrize("case", QUIRKS)
def test_memories_are_joined_with_the_originals_quirks(tmp_path: Path, case: str) -> None:
    texts, expected = QUIRKS[case]
    found = item(tmp_path, {f"{t}｜｜｜{text}": [9.0 - i, 0.0] for i, (t, text) in enumerate(texts.items())})
    assert found["retrieved_memory"] == expected
    assert found["input"] == f"{PROMPT}###{expected}###阿砚:「开船吗？」"


def test_no_memory_and_no_history_leave_two_separators(tmp_path: Path) -> None:
    assert item(tmp_path, {"a｜｜｜" + "x" * 1998: [1.0, 0.0]})["input"] == f"{PROMPT}######阿砚:「开船吗？」"


def test_at_most_eight_memories_are_used(tmp_path: Path) -> None:
    found = item(tmp_path, {f"t{i}｜｜｜m{i}": [float(i), 1.0] for i in range(10)})
    assert found["retrieved_memory"] == "###".join(f"m{i}" for i in range(9, 1, -1))


def test_a_loader_gives_inputs_and_answers(tmp_path: Path) -> None:
    rows = CharacterDataset([row(), row(("阿砚:「早。」",))], write_role(tmp_path / "r", {"t｜｜｜m": [1.0, 0.0]}))
    assert list(DataLoader(rows, batch_size=2, collate_fn=collate_fn)) == [
        ([f"{PROMPT}###m###阿砚:「开船吗？」", f"{PROMPT}###m阿砚:「早。」###阿砚:「开船吗？」"], ["小棹:「开。」"] * 2)
    ]


def test_what_cannot_be_ranked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 numbers in 'embedding'; the memories have 2"):
        item(tmp_path / "1", {"t｜｜｜m": [1.0, 0.0]}, embedding=())
    with pytest.raises(DataError, match="no stored vectors"):
        CharacterDataset([row()], write_role(tmp_path / "2", texts={"a.txt": "m"}))
    with pytest.raises(MissingFileError, match=r"system_prompt\.txt"):
        CharacterDataset([row()], tmp_path)


# a line of title_text_embed.jsonl -> the error
BAD_LINES = {
    '{"a｜｜｜b": [1.0], "c｜｜｜d": [1.0]}': "2 keys",
    '{"a｜｜｜b": [1.0, "2"]}': "not a vector",
    '{"a｜｜｜b": []}': "not a vector",
    '{"a｜｜｜b": [1.0, 2.0, 3.0]}': "a vector of 3 numbers, after one of 2",
    '["a"]': "list instead of an object",
    "{": "broken JSON",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_memory_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    folder = write_role(tmp_path / "zhao", {"t｜｜｜m": [1.0, 0.0]})
    with (folder / "jsonl/title_text_embed.jsonl").open("a", encoding="utf-8") as file:
        file.write(line)
    with pytest.raises(DataError, match=f"title_text_embed.jsonl, line 2: {BAD_LINES[line]}"):
        CharacterDataset([row()], folder)


def test_memories_on_one_line_are_all_read(tmp_path: Path) -> None:
    folder = write_role(tmp_path / "zhao", {})
    lines = "".join(json.dumps({f"t｜｜｜m{i}": [float(i)]}) for i in range(5))
    (folder / "jsonl/title_text_embed.jsonl").write_text(lines, encoding="utf-8")
    assert CharacterDataset([], folder).memories == ("m0", "m1", "m2", "m3", "m4")
