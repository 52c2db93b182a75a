"""Memories in the order of how many rows use them, in rows and in chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from role_folder import PROMPT, dialogue, write_lines, write_role

from kyon_pl.chat.role_play import RolePlay
from kyon_pl.data import read_jsonl_file
from kyon_pl.errors import DataError, SettingError
from kyon_pl.roles.build import build_data
from kyon_pl.roles.contexts import ContextLimits
from kyon_pl.roles.role import read_role

TEXTS = {"a.txt": "钟楼里有风筝。", "b.txt": "灯塔在湾口。", "c.txt": "蜜糕三枚贝币。"}
QUESTIONS = ("灯塔蜜糕？", "蜜糕灯塔灯塔？", "蜜糕贝币灯塔？", "灯塔湾口？", "钟楼灯塔？", "风筝钟楼！")
LIMIT = 2  # memories in a row


@pytest.fixture
def zhao(tmp_path: Path) -> Path:
    folder = write_role(tmp_path / "zhao", texts=TEXTS)
    (folder / "aliases.txt").write_text("小棹", encoding="utf-8")
    answers = ("有。", "在。", "问船工去。", "左边。", "看。", "飞了。")
    turns = [dialogue(f"阿禾:{q}", f"小棹:{a}") for q, a in zip(QUESTIONS, answers, strict=True)]
    write_lines(folder / "dialogues/quay.jsonl", turns)
    return folder


def contexts(role: Path, **options: Any) -> list[list[str]]:
    """The segments of each context."""
    output = role.parent / "rows.jsonl"
    build_data(str(role), str(output), memory_number=LIMIT, **options)
    return [row["context"].split("###") for row in read_jsonl_file(output)]


def test_the_memory_of_most_rows_comes_first(zhao: Path) -> None:
    by_likeness = contexts(zhao)
    rows = (zhao.parent / "rows.jsonl").read_bytes()
    assert not (zhao / "memory_order.json").exists()
    by_use = contexts(zhao, memory_order="frequency")
    kept = json.loads((zhao / "memory_order.json").read_text(encoding="utf-8"))["memories_by_frequency"]
    assert [sorted(row) for row in by_use] == [sorted(row) for row in by_likeness]  # the same memories are chosen
    assert by_use != by_likeness
    uses = [sum(memory in row for row in by_use) for memory in kept]
    assert uses == sorted(uses, reverse=True)
    assert uses[0] > uses[-1]
    for row in by_use:
        ranks = [kept.index(part) for part in row if part in kept]
        assert ranks == sorted(ranks)

    play = RolePlay(read_role(zhao), "auto", ContextLimits(memory_number=LIMIT), len)
    assert [play.context(row[-1], []).text.split("###") for row in by_use] == by_use

    contexts(zhao, memory_order="likeness")
    assert (zhao.parent / "rows.jsonl").read_bytes() == rows
    assert not (zhao / "memory_order.json").exists()  # or chat would differ from these rows
    play = RolePlay(read_role(zhao), "auto", ContextLimits(memory_number=LIMIT), len)
    assert [play.context(row[-1], []).text.split("###") for row in by_likeness] == by_likeness


def test_a_role_file_keeps_its_order_beside_it(zhao: Path) -> None:
    lines: list[object] = [{"text": PROMPT, "luotuo_openai": "system_prompt"}]
    role = write_lines(zhao.parent / "roles/zhao.jsonl", lines + [{"text": text} for text in TEXTS.values()])
    options: dict[str, Any] = {"aliases": {"zhao": ["小棹"]}, "dialogues": str(zhao / "dialogues")}
    output = zhao.parent / "rows.jsonl"
    build_data(str(role.parent), str(output), memory_order="frequency", memory_number=LIMIT, **options)
    assert (role.parent / "zhao.memory_order.json").is_file()
    assert next(iter(read_role(role).memory_ranks or ())) == TEXTS["b.txt"]
    build_data(str(role.parent), str(output), memory_order="frequency", **options)  # it is not read as a role


def test_refusals(zhao: Path) -> None:
    with pytest.raises(SettingError, match="mode original: the original puts the nearest memory first"):
        contexts(zhao, mode="original", memory_order="frequency")
    demo = zhao.parent / "demo.jsonl"
    with pytest.raises(SettingError, match="which cannot keep an order"):
        build_data("demo/Pell", str(demo), str(zhao / "dialogues"), memory_order="frequency")
    for text in ('{"memories_by_frequency": [7]}', '{"memories_by_frequency": ', "[]"):
        (zhao / "memory_order.json").write_text(text)
        with pytest.raises(DataError, match=r"memory_order\.json: it cannot be read, or has no list"):
            contexts(zhao)
        assert (zhao / "memory_order.json").read_text() == text
    assert not demo.exists()
