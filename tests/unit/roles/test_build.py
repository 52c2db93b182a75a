"""Rows and report built from role folders and dialogues."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from role_folder import PROMPT, dialogue, write_lines, write_role

from kyon_pl.data import read_jsonl_file
from kyon_pl.data.reading.quality import ODDITIES
from kyon_pl.errors import DataError, MissingFileError, SettingError
from kyon_pl.roles.build import build_data, output_of_rows, write_rows
from kyon_pl.roles.rows import COLUMNS

TEXTS = {"lamp.txt": "灯塔在湾口，夜里亮。", "cake.txt": "蜜糕是甜的，三枚贝币。"}
MEMORIES = f"{TEXTS['lamp.txt']}###{TEXTS['cake.txt']}"  # nearest first
LAMP = dialogue("阿禾:「早。」", "小棹:「早。」", "阿禾:「灯塔在哪里？」", "小棹:「湾口。」")


@pytest.fixture
def zhao(tmp_path: Path) -> Path:
    folder = write_role(tmp_path / "zhao", texts=TEXTS)
    (folder / "aliases.txt").write_text("小棹", encoding="utf-8")
    return folder


def build(folder: Path, objects: list[object] | None = None, **options: Any) -> list[dict[str, Any]]:
    """The rows made of a folder's dialogues."""
    if objects is not None:
        write_lines(folder / "dialogues/quay.jsonl", objects)
    output = folder.parent / "rows.jsonl"
    build_data(str(folder), str(output), **options)
    return read_jsonl_file(output)


def report(folder: Path) -> str:
    return (folder.parent / "rows.report.txt").read_text(encoding="utf-8")


def test_rows_of_both_modes(zhao: Path) -> None:
    """Ours have each turn in a segment; the original's lose one, and have no separator before the history."""
    first, second = build(zhao, [LAMP])
    assert [*first] == [*COLUMNS]
    assert second == {
        "context": f"{PROMPT}###{MEMORIES}###阿禾:「早。」###小棹:「早。」###阿禾:「灯塔在哪里？」",
        "target": "小棹:「湾口。」",
        "character": "zhao",
        "question": "阿禾:「灯塔在哪里？」",
        "dialogue": "zhao/quay.jsonl#1",
        "source": "invented",
    }
    first, second = build(zhao, mode="original")
    assert second["context"] == f"{PROMPT}###{MEMORIES}阿禾:「早。」###阿禾:「灯塔在哪里？」"
    assert (second["target"], second["dialogue"]) == ("小棹:「湾口。」", "zhao/quay.jsonl#1")
    assert second["source"] == "story-synthesised"


def test_parquet_and_jsonl_hold_the_same(zhao: Path, tmp_path: Path) -> None:
    ready = {"query": "阿禾:「灯塔？」", "answer": "小棹:「湾口。」"}
    rows = build(zhao, [LAMP, ready])
    assert rows[-1]["dialogue"] is None
    build_data(str(zhao), str(tmp_path / "new/rows.parquet"))
    assert parquet.read_table(tmp_path / "new/rows.parquet").to_pylist() == rows


def test_the_report_counts_everything(zhao: Path, caplog: pytest.LogCaptureFixture) -> None:
    opens = dialogue("小棹:「上船！」", "阿禾:「好。」", "小棹:「坐稳。」", "小棹:「走。」")
    with caplog.at_level(logging.INFO, "kyon_pl.data"):
        rows = build(zhao, [LAMP, opens, dialogue("阿禾:「早。」"), {"dialogue": 7}, LAMP])
    assert len(rows) == 5
    lines = report(zhao).splitlines()
    assert re.sub(r" +", " ", "\n".join(lines[:8])).replace(str(zhao), "") == "\n".join(
        [
            "read 9 turns of the roles, and ready-made rows",
            "written 5 rows",
            "dropped 4",
            " 1 × a turn that opens the dialogue, so it answers nothing",
            " 1 × a turn directly after another turn of the role",
            " 1 × no turn of the role in the dialogue",
            " 1 × no list of turns in 'dialogue'",
            " /dialogues/quay.jsonl, object 2: a turn that opens the dialogue, so it answers nothing",
        ]
    )
    assert "        2 × exact duplicates of an earlier row" in report(zhao)
    assert "speakers of the targets: 小棹 × 5" in report(zhao)
    assert "5 × by shared characters" in report(zhao)
    assert "characters per row, context and target: median " in report(zhao)
    assert caplog.messages[:-2] == lines
    assert re.fullmatch(r"build-data: 5 rows in .*rows\.jsonl, report in .*rows\.report\.txt", caplog.messages[-2])
    assert re.fullmatch(r"next: kyon-pl preview --data\.source .*rows\.jsonl", caplog.messages[-1])


def test_odd_rows_are_counted_and_listed_and_dropped_on_request(zhao: Path) -> None:
    """As by data.drop. Rows that fit cannot train on are left out too, but not in mode original."""

    def row(answer: str, query: str = "阿禾:「灯塔在哪里？」") -> dict[str, str]:
        return {"query": query, "answer": f"小棹:「{answer}」"}

    repeated, signs, leak = row("好好" * 20), row("……！"), row("灯塔在湾口")
    sure, empty, half = row("湾口。"), row(""), row("湾口\ud800。")
    objects: list[object] = [sure, repeated, sure, signs, leak, empty, half, dialogue("阿禾:「早。」"), sure]
    file, listed = write_lines(zhao / "dialogues/quay.jsonl", []), zhao.parent / "lists/bad.jsonl"
    file.write_text("\n".join(map(json.dumps, objects)))  # a lone surrogate as an escape, which UTF-8 cannot encode
    kinds = ["duplicate", "loop", "punctuation"]
    rows = build(zhao, drop=kinds, bad_rows_file=str(listed), exclude_own_scene=False)
    assert [r["target"] for r in rows] == [sure["answer"], leak["answer"]]
    expected = [
        (2, ["loop"], True, ""),
        (3, ["duplicate"], True, ""),
        (4, ["punctuation"], True, ""),
        (5, ["leak"], False, ""),
        (6, [], True, "nothing said in 'target': '小棹:「」' (str)"),
        (7, [], True, "half a character in 'target': a lone surrogate"),
        (8, [], True, "no turn of the role in the dialogue"),
        (9, ["duplicate"], True, ""),
    ]
    found = [(r["line"], r["odd"], r["left_out"], r["problem"]) for r in read_jsonl_file(listed)]
    assert found == expected
    assert {r["file"] for r in read_jsonl_file(listed)} == {str(zhao / "dialogues/quay.jsonl")}
    for line in (
        "read                 9",
        "written              2",
        "dropped              7",
        "  1 × targets that are copied",
    ):
        assert line in report(zhao)

    assert len(build(zhao, exclude_own_scene=False)) == 6, "all rows that can be trained on"
    assert len(build(zhao, mode="original")) == 7, "and the empty one"
    assert "bad                  1   rows, written as by the original; fit leaves them out" in report(zhao)
    with pytest.raises(SettingError, match=r"^drop: there is no 'short'. Choose among: duplicate, loop"):
        build(zhao, drop=["short"])
    with pytest.raises(SettingError, match=r"bad_rows_file: .*dialogues is read as a file of role zhao"):
        build(zhao, bad_rows_file=str(zhao / "dialogues"))


def test_loops_of_tokens(zhao: Path) -> None:
    """Nine characters are too many for a loop of characters; the demo's tokenizer makes few tokens of them."""
    rows: list[object] = [{"query": "阿禾:「唱！」", "answer": f"小棹:「{'the lamp ' * 40}」"}]
    build(zhao, rows)
    assert "  0 × targets that repeat" in report(zhao)
    build(zhao, rows, tokenizer="demo")
    assert "  1 × targets that repeat" in report(zhao)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from(["小棹", "阿禾"]), st.text("}#{a「", max_size=4)), max_size=5)),
    st.sets(st.sampled_from([*ODDITIES])),
)
def test_read_rows_are_written_or_dropped_and_targets_are_unchanged(
    dialogues: list[list[tuple[str, str]]], drop: set[str]
) -> None:
    sure = [("阿禾", "早"), ("小棹", "早")]  # a file must yield a row
    said = [sure, *dialogues]
    with tempfile.TemporaryDirectory() as folder:
        zhao = write_role(Path(folder) / "zhao")
        objects: list[object] = [{"dialogue": [{"role": r, "text": t} for r, t in turns]} for turns in said]
        for mode in ("fixed", "original"):
            listed = Path(folder) / "bad.jsonl"
            options = {"mode": mode, "drop": sorted(drop), "bad_rows_file": str(listed)}
            rows = build(zhao, objects, aliases={"zhao": ["小棹"]}, **options)
            left_out = sum(row["left_out"] for row in read_jsonl_file(listed))
            counts = re.findall(r"^(?:read|written|dropped) +(\d+)", report(zhao), re.MULTILINE)
            read, written, dropped = map(int, counts)
            assert read == written + dropped == sum(max(1, sum(r == "小棹" for r, _ in turns)) for turns in said)
            assert (written, dropped) == (len(rows), left_out)
            answers = {f"{r}:{t}" for turns in said for r, t in turns if r == "小棹"}
            assert {row["target"] for row in rows} <= answers
            assert all(row["context"].endswith(row["question"]) or "###" in row["question"] for row in rows)


def test_another_memory_takes_the_place_of_the_own_scene(zhao: Path) -> None:
    """Even with memory_number=1."""
    (zhao / "texts/own.txt").write_text("阿禾：灯塔在哪里？ 小棹：湾口。", encoding="utf-8")
    assert f"###{TEXTS['lamp.txt']}###阿禾" in build(zhao, [LAMP], memory_number=1)[-1]["context"]
    assert "1 × own scene left out of the memories" in report(zhao)
    own = build(zhao, memory_number=1, exclude_own_scene=False)[-1]["context"]
    assert "###阿禾：灯塔在哪里？ 小棹：湾口。###" in own


def test_lengths_in_tokens(zhao: Path) -> None:
    """With the demo's tokenizer, 80 turns before the question are cut to those with 30 tokens in all."""
    long = dialogue(*["阿禾:「灯塔在哪里？」", "小棹:「湾口。」"] * 40)
    last = build(zhao, [long], tokenizer="demo", memory_length=40, history_length=30)[-1]
    _, *middle, _ = last["context"].split("###")
    assert 0 < len(middle) < 8
    assert "tokens per row, context and target" in report(zhao)
    assert "history shortened" in report(zhao)
    assert len(build(zhao, memory_length=0, history_length=0)[-1]["context"].split("###")) == 2


def test_a_file_belongs_to_the_role_it_names(tmp_path: Path) -> None:
    """As one of the parts of its name between underscores."""
    for name in ("mo", "zhao"):
        write_role(tmp_path / "roles" / name)
    made = tmp_path / "made"
    write_lines(made / "synthesis_mo_1.jsonl", [{"query": "q", "answer": "from mo"}])
    write_lines(made / "zhao_2.jsonl", [{"query": "q", "answer": "from zhao"}])
    output = tmp_path / "rows.parquet"
    build_data(str(tmp_path / "roles"), str(output), str(made / "*.jsonl"))
    assert [(r["character"], r["target"]) for r in parquet.read_table(output).to_pylist()] == [
        ("mo", "from mo"),
        ("zhao", "from zhao"),
    ]
    write_lines(made / "momo.jsonl", [{"query": "q", "answer": "a"}])
    with pytest.raises(SettingError, match="it is not clear which role it belongs to"):
        build_data(str(tmp_path / "roles"), str(output), str(made))
    build_data(str(tmp_path / "roles/mo"), str(output), str(made / "momo.jsonl"))  # with one role, any name will do


def test_a_file_without_a_row_is_an_error_and_leaves_the_old_file(zhao: Path) -> None:
    before = build(zhao, [LAMP])
    for text, found in (("", "the file is empty"), ("\n\n", "the file is empty"), ('{"a": 1}\n', "1 × no object with")):
        (zhao / "dialogues/second.jsonl").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=f"second.jsonl: no row for role zhao .{found}"):
            build(zhao)
    (zhao / "dialogues/second.jsonl").unlink()
    names = r"must start with 'Zhao'; the speakers in this file are 阿禾, 小棹\..*aliases\.txt"
    with pytest.raises(DataError, match=rf"no row .*no turn of the role.* {names}"):
        build(zhao, aliases={"zhao": ["Zhao"]})
    assert read_jsonl_file(zhao.parent / "rows.jsonl") == before
    beside = {"rows.report.txt", "rows.prompt_format.yaml"}
    assert {path.name for path in zhao.parent.iterdir()} == {"zhao", "rows.jsonl", *beside}


def test_invalid_settings_are_refused(zhao: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no file with dialogues"):
        build(zhao)
    (tmp_path / "d.txt").touch()
    with pytest.raises(DataError, match="unsupported kind of file"):
        build(zhao, dialogues=str(tmp_path / "d.txt"))
    for option in ({"history_length": 10}, {"tokenizer": "demo"}):
        with pytest.raises(SettingError, match="the original counts characters"):
            build(zhao, [LAMP], mode="original", **option)
    with pytest.raises(SettingError, match="a negative number"):
        build(zhao, memory_number=-1)
    with pytest.raises(SettingError, match=r"ends in '\.csv'"):
        build_data(str(zhao), str(tmp_path / "rows.csv"))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_is_complete_or_does_not_exist(tmp_path: Path, suffix: str) -> None:
    def rows() -> Iterator[Mapping[str, str | None]]:
        yield dict.fromkeys(COLUMNS, "a")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_rows(output_of_rows(str(tmp_path / f"rows{suffix}")), rows())
    assert list(tmp_path.iterdir()) == []
