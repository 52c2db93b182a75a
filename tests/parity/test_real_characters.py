"""The contexts that were published, from the same rows and role folders; the order of near-equal memories is open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from kyon_pl.data import CharacterDataset, read_jsonl_file
from kyon_pl.roles.build import build_data
from kyon_pl.roles.role import read_role

REAL_DATA = os.environ.get("KYON_REAL_DATA_DIR")
pytestmark = pytest.mark.skipif(not REAL_DATA, reason="KYON_REAL_DATA_DIR is not set: real rows are not committed")
ROLES = ("tangshiye", "wangduoyu")
MIN_GAP = 1e-5


@pytest.fixture(scope="module")
def real() -> Path:
    return Path(str(REAL_DATA))


def golden_of(real: Path, role: str) -> list[dict[str, Any]]:
    return [row for row in read_jsonl_file(real / "golden_contexts.jsonl") if row["character"] == role]


def same(ours: str, golden: dict[str, Any]) -> bool:
    if golden["min_gap"] < MIN_GAP:
        return sorted(ours) == sorted(golden["context"])  # the same characters: the same memories in another order
    return ours == golden["context"]


@pytest.mark.parametrize("role", ROLES)
def test_contexts_are_the_published_ones(real: Path, role: str) -> None:
    golden = golden_of(real, role)
    rows = CharacterDataset(read_jsonl_file(real / f"training_rows/{role}.jsonl"), real / f"characters/{role}")
    assert len(rows) == len(golden) == 42
    for row in golden:
        item = rows[row["row"]]
        assert same(item["input"], row), row["row"]
        assert item["answer"] == row["target"]


def test_the_comparison_sees_a_memory_too_few(real: Path) -> None:
    """Negative control: with 7 memories, or 10 characters less for them, some contexts are others."""
    golden = golden_of(real, ROLES[0])
    rows, folder = read_jsonl_file(real / f"training_rows/{ROLES[0]}.jsonl"), real / f"characters/{ROLES[0]}"
    for changed in (CharacterDataset(rows, folder, 7), CharacterDataset(rows, folder, 8, 1990)):
        assert not all(same(changed[row["row"]]["input"], row) for row in golden)


def test_build_data_makes_them_too(real: Path, tmp_path: Path) -> None:
    files = [str(real / f"training_rows/{role}.jsonl") for role in ROLES]
    build_data(str(real / "characters"), str(tmp_path / "rows.parquet"), files, mode="original")
    rows = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    golden = [row for role in ROLES for row in golden_of(real, role)]
    assert len(rows) == len(golden)
    for ours, row in zip(rows, golden, strict=True):
        assert ours["target"] == row["target"]
        assert same(ours["context"], row)


@pytest.mark.parametrize("mode", ["fixed", "original"])
def test_a_real_file_on_one_line_makes_all_its_rows(real: Path, tmp_path: Path, mode: Any) -> None:
    """Its rows have no vectors, so the memories are ranked lexically; any role's will do."""
    file = str(real / "training_rows/baizhantang_one_line.jsonl")
    build_data(str(real / "characters/wangduoyu"), str(tmp_path / "rows.parquet"), file, mode=mode)
    targets = parquet.read_table(tmp_path / "rows.parquet").column("target").to_pylist()
    assert targets == [row["answer"] for row in read_jsonl_file(Path(file))]
    assert len(targets) == 1019


def test_real_dialogues_lose_no_turn(real: Path, tmp_path: Path) -> None:
    """Every target is a turn of the dialogue that its row names; the turn before the question is there, too."""
    name = f"{ROLES[0]}_test_output_dialogue.jsonl"
    aliases = {ROLES[0]: ["汤师爷"]}
    build_data(
        str(real / f"characters/{ROLES[0]}"), str(tmp_path / "r.parquet"), str(real / "dialogues" / name), aliases
    )
    dialogues = read_jsonl_file(real / "dialogues" / name)
    rows = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert len(rows) > 100
    prompt = read_role(real / f"characters/{ROLES[0]}").system_prompt
    for row in rows:
        turns = dialogues[int(row["dialogue"].partition("#")[2]) - 1]["dialogue"]
        lines = [f"{turn['role']}:{turn['text']}" if turn["role"] else turn["text"] for turn in turns]
        place = next(i for i in range(1, len(lines)) if lines[i - 1 : i + 1] == [row["question"], row["target"]])
        assert row["context"].startswith(f"{prompt}###")
        assert row["context"].endswith("###".join(["", *lines[max(0, place - 2) : place]]))
