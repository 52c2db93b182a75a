from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from datasets import Dataset, DatasetDict
from hub_server import HubServer, hub_environment
from pyarrow import parquet

from kyon_pl.data import collate_fn, read_jsonl_file
from kyon_pl.data.reading.columns import ColumnNames
from kyon_pl.data.reading.files import local_files
from kyon_pl.data.reading.sources import Rows, SourceSettings, load_rows
from kyon_pl.errors import DataError, KyonError, MissingFileError, SettingError

GOOD = {"context": "s###春日：}", "target": "「好」"}


def line(**changes: Any) -> str:
    return json.dumps(GOOD | changes, ensure_ascii=False)


def load(tmp_path: Path, source: str | Path | list[str], columns: ColumnNames | None = None, **settings: Any) -> Rows:
    source = source if isinstance(source, list) else str(source)
    return load_rows(SourceSettings(source, columns=columns or ColumnNames(), **settings), str(tmp_path / "cache"))


# a line of a JSONL file -> the problem that is reported with its file and line; "" if it is a good row
LINES = {
    "good": (line(), ""),
    "more columns": (line(character="春日", embedding=[1.5], memory={"a": 1}), ""),
    "no target": ('{"context": "c"}', "no 'target'"),
    "null": (line(target=None), "null in 'target'"),
    "number": (line(target=42), "no text in 'target': '42' (int)"),
    "list": (line(context=["a"]), "no text in 'context': \"['a']\" (list)"),
    "object": (line(target={"text": "a"}), "no text in 'target': \"{'text': 'a'}\" (dict)"),
    "empty target": (line(target=""), "empty 'target'"),
    "blank target": (line(target=" \n　"), "empty 'target'"),
    "empty context": (line(context=" "), "empty 'context'"),
    "only quotes": (line(target="「」"), "nothing said in 'target': '「」' (str)"),
    "only a name": (line(target="春日：「 」"), "nothing said in 'target': '春日：「 」' (str)"),
    "silence is a reply": (line(target="长门：「……」"), ""),
    "surrogate": ('{"context": "c", "target": "\\ud83d"}', "half a character in 'target': a lone surrogate"),
    "emoji": ('{"context": "c", "target": "\\ud83d\\ude00"}', ""),
    "no object": ('["context", "target"]', "not a row: \"['context', 'target']\" (list)"),
    "cut off": ('{"context": "c", "tar', "broken JSON: Unterminated string starting at at character 18"),
    "no JSON": ("context: c", "broken JSON: Expecting value at character 1"),
    "line separator": (line(target="a\u2028b\x85c"), ""),
    "ids": ('{"input_ids": [1, 2, 3], "seq_len": 2}', ""),
    "ids of text": ('{"input_ids": ["a"], "seq_len": 1}', "no list of token ids in 'input_ids': \"['a']\" (list)"),
    "negative ids": (
        '{"input_ids": [1, -100], "seq_len": 1}',
        "no list of token ids in 'input_ids': '[1, -100]' (list)",
    ),
    "nothing to train": (
        '{"input_ids": [1, 2], "seq_len": 2}',
        "'seq_len' leaves nothing to train: '2' (int) of 2 ids",
    ),
}


def talk(*turns: Any) -> str:
    """A line with messages; a text is one of user and assistant in turn, anything else stands as it is."""
    roles = ("user", "assistant") * len(turns)
    listed = [
        {"role": role, "content": turn} if isinstance(turn, str) else turn
        for role, turn in zip(roles, turns, strict=False)
    ]
    return json.dumps({"messages": listed}, ensure_ascii=False)


SYSTEM = {"role": "system", "content": "sys"}
ASSISTANT = {"role": "assistant", "content": "a"}
LINES |= {
    "messages": (talk("q", "a", "r", "b"), ""),
    "messages with a system prompt": (talk(SYSTEM, {"role": "user", "content": "q"}, ASSISTANT), ""),
    "messages beside a context": (line(messages="of another form"), ""),
    "messages of text": ('{"messages": "hello"}', "no list in 'messages': 'hello' (str)"),
    "no message": ('{"messages": []}', "empty 'messages'"),
    "text for a message": ('{"messages": ["q", "a"]}', "no message in 'messages': message 1, 'q' (str)"),
    "unknown role": (
        talk("q", {"role": "tool", "content": "a"}),
        "no known role in 'messages': message 2, 'tool' (str)",
    ),
    "no content": (talk("q", {"role": "assistant"}), "no 'content' in 'messages': message 2"),
    "null content": (talk("q", {"role": "assistant", "content": None}), "null in 'content' in 'messages': message 2"),
    "content of parts": (
        talk({"role": "user", "content": [1]}, "a"),
        "no text in 'content' in 'messages': message 1, '[1]' (list)",
    ),
    "empty message": (talk("q", " "), "empty 'content' in 'messages': message 2"),
    "silent message": (talk("q", "「」", "r", "b"), "nothing said in 'messages': message 2, '「」' (str)"),
    "no reply": (talk("q", "a", "r"), "no reply at the end of 'messages': the last is of user"),
    "only a system prompt": (talk(SYSTEM), "no reply at the end of 'messages': the last is of system"),
    "only a greeting": (talk(ASSISTANT), "no question in 'messages': only the assistant speaks"),
    "late system prompt": (
        talk("q", "a", SYSTEM, "a"),
        "roles out of turn in 'messages': message 3 is of system, which must be the first",
    ),
}


@pytest.fixture(scope="module")
def many_lines(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """All of LINES in one file, so that every kind of row stands next to every other, with an empty line in front."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "rows.jsonl").write_text("\n" + "\n".join(text for text, _ in LINES.values()), encoding="utf-8")
    return load(folder, folder / "rows.jsonl")


@pytest.mark.parametrize("name", LINES)
def test_every_row_is_kept_with_its_problem_and_its_line(many_lines: Rows, name: str) -> None:
    number = list(LINES).index(name)
    text, problem = LINES[name]
    row = many_lines.dataset[number]
    assert row["problem"] == problem
    assert many_lines.place(number) == f"{many_lines.files[0]}, line {number + 2}"
    if not problem and '"messages": [' in text:
        turns = json.loads(text)["messages"]
        assert (row["messages"], row["target"]) == (turns[:-1], turns[-1]["content"])
        assert row["context"] == "###".join(turn["content"] for turn in turns[:-1])
    if not problem and "context" in text:
        assert (row["context"], row["target"]) == (json.loads(text)["context"], json.loads(text)["target"])


def test_bytes_that_are_no_text_are_one_bad_row(tmp_path: Path) -> None:
    lines = [b"\xef\xbb\xbf" + line().encode(), '{"context": "春"}'.encode("gbk"), line().encode() + b"\r"]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    problems = load(tmp_path, tmp_path / "rows.jsonl").dataset["problem"][:]
    assert problems == ["", "not UTF-8: invalid start byte at byte 14", ""]


def test_objects_on_one_line_are_all_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(line() * 3 + " " + line(target="last") + '{"context')
    rows = load(tmp_path, tmp_path / "rows.jsonl").dataset
    assert rows["target"][:] == ["「好」", "「好」", "「好」", "last", None]
    assert rows["row"][:] == [1] * 5
    assert rows["problem"][4].startswith("broken JSON")


def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    texts = [GOOD["target"], "42", "NA", 'two\nlines, "quoted"']
    rows = [GOOD | {"target": text} for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "c.json").write_text("\n".join(map(json.dumps, rows)))
    cells = ['"' + text.replace('"', '""') + '"' for text in texts]
    (tmp_path / "d.csv").write_text("context,target\n" + "".join(f"{GOOD['context']},{cell}\n" for cell in cells))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
    loaded = load(tmp_path, tmp_path)
    assert loaded.dataset["target"][:] == texts * 5
    assert [Path(file).name for file in loaded.files] == ["a.jsonl", "b.json", "c.json", "d.csv", "e.parquet"]
    assert loaded.place(15).endswith("d.csv, line 5")
    assert loaded.place(19).endswith("e.parquet, row 4")


def test_csv_rows_of_the_wrong_width_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("context,target\nc\nc,t\nc,t,t\n")
    problems = load(tmp_path, tmp_path / "rows.csv").dataset["problem"][:]
    assert problems == ["null in 'target'", "", "more cells than columns"]


def write(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


# files, source, and what the error says
REFUSED = {
    "missing file": ({}, "rows.jsonl", MissingFileError, "rows.jsonl: there is no such file or folder"),
    "missing in a folder": ({}, "no/such/rows.txt", MissingFileError, "no such file or folder"),
    "glob": ({}, "*.jsonl", MissingFileError, "no file matches this pattern"),
    "empty folder": ({"x/notes.txt": "a"}, "x", MissingFileError, "x: no data file in this folder"),
    "other kind": (
        {"rows.txt": "a"},
        "rows.txt",
        DataError,
        r"files with the suffix \.txt cannot be read\. Give .*\.jsonl.* kyon-pl import-role rows\.txt --output roles/",
    ),
    "card": (
        {"card.json": '{"spec": "chara_card_v2", "data": {"name": "Bo"}}'},
        "card.json",
        DataError,
        r"card\.json: it is a character card, and holds no rows\. Make .*: kyon-pl import-role card\.json --output",
    ),
    "no such split": (
        {"x/dev.jsonl": "{}", "x/test.jsonl": "{}"},
        "x",
        SettingError,
        "data.split: .*has files of split validation, test, and none of 'train'",
    ),
    "wrong column": (
        {"rows.jsonl": '{"question": "q", "target": "t"}\n' * 3},
        "rows.jsonl",
        DataError,
        r"rows\.jsonl: no column 'context'; the columns are question, target\. Set data\.context_column",
    ),
    "wrong csv column": ({"rows.csv": "context,answer\nc,a\n"}, "rows.csv", DataError, "no column 'target'"),
    "broken json": (
        {"rows.json": '[{"context": 1},\n {"con'},
        "rows.json",
        DataError,
        "rows.json, line 2: broken JSON: Unterminated string",
    ),
    "broken csv": (
        {"rows.csv": 'context,target\nc,t\n"c,t\n'},
        "rows.csv",
        DataError,
        "rows.csv, after line 2: broken CSV.*Close the quote",
    ),
    "csv of another encoding": (
        {"rows.csv": "context,target\n春,のと\n".encode("shift_jis")},
        "rows.csv",
        DataError,
        "not UTF-8.*CSV UTF-8",
    ),
    "broken parquet": ({"rows.parquet": "PAR1"}, "rows.parquet", DataError, "not a readable Parquet file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_at_all_is_refused_in_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files, source, kind, message = REFUSED[name]
    for file, content in files.items():
        write(tmp_path, file, content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KyonError, match=message) as caught:
        load(tmp_path, source)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_an_error_of_several_processes_is_the_error_of_one(tmp_path: Path) -> None:
    write(tmp_path, "x/a.jsonl", line())
    write(tmp_path, "x/b.json", '[{"context": 1},\n {"con')
    with pytest.raises(DataError, match=r"b\.json, line 2: broken JSON: Unterminated string"):
        load_rows(SourceSettings(str(tmp_path / "x")), str(tmp_path / "cache"), processes=2)


def test_one_row_without_the_column_is_a_bad_row_and_not_a_wrong_column(tmp_path: Path) -> None:
    write(tmp_path, "rows.jsonl", '{"context": "c"}\n' + line())
    assert load(tmp_path, tmp_path / "rows.jsonl").dataset["problem"][:] == ["no 'target'", ""]


def test_prompts_need_no_target(tmp_path: Path) -> None:
    write(tmp_path, "rows.jsonl", '{"ask": "c"}\n{"ask": "c", "target": "t"}\n{"ask": "c", "target": 1}\n')
    rows = load(tmp_path, tmp_path / "rows.jsonl", ColumnNames("ask", target_required=False)).dataset
    assert rows["target"][:] == [None, "t", None]
    assert rows["problem"][2] == "no text in 'target': '1' (int)"


def test_folders_follow_split_names_and_globs_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train.jsonl", "valid.jsonl", "README.md", "deep/train-2.json"):
        write(tmp_path, f"told/{name}", "")
    for name in ("b.jsonl", "a.csv", ".hidden.jsonl", "notes.txt", "deep/c.parquet"):
        write(tmp_path, f"plain/{name}", "")

    def names(source: str | list[str], split: str = "train") -> list[str]:
        return [str(file.resolve().relative_to(tmp_path)) for file in local_files(source, split) or []]

    monkeypatch.chdir(tmp_path)
    assert names("told") == ["told/deep/train-2.json", "told/train.jsonl"]
    assert names("told", "validation") == ["told/valid.jsonl"]
    assert names("plain", "validation") == names("plain") == ["plain/a.csv", "plain/b.jsonl", "plain/deep/c.parquet"]
    assert names("told/*.jsonl") == ["told/train.jsonl", "told/valid.jsonl"]
    assert names(str(tmp_path / "**" / "*.csv")) == ["plain/a.csv"]
    assert names(["told/valid.jsonl", "plain/*.csv"]) == ["told/valid.jsonl", "plain/a.csv"]
    assert local_files("owner/data") is None


def test_the_embedded_rows_go_by_the_name_demo() -> None:
    assert [file.name for file in local_files("demo") or []] == ["train.jsonl"]
    assert [file.name for file in local_files("demo", "validation") or []] == ["validation.jsonl"]


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    write(tmp_path, "rows.jsonl", line())
    first = load(tmp_path, tmp_path / "rows.jsonl")
    assert load(tmp_path, tmp_path / "rows.jsonl").dataset.cache_files == first.dataset.cache_files
    write(tmp_path, "rows.jsonl", line(target="new"))
    second = load(tmp_path, tmp_path / "rows.jsonl")
    assert second.dataset["target"][:] == ["new"]
    assert second.fingerprint != first.fingerprint


HUB_CASES = """
import json, sys
from kyon_pl.data.reading.sources import SourceSettings, load_rows
from kyon_pl.errors import KyonError
for settings in json.loads(sys.argv[1]):
    try:
        rows = load_rows(SourceSettings(**settings))
        print(json.dumps([rows.place(len(rows.dataset) - 1), rows.dataset["problem"][:], rows.dataset["context"][:]]))
    except KyonError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def test_hub_data_sets_are_checked_like_files(tmp_path: Path) -> None:
    write(tmp_path, "good/train.jsonl", "\n".join([line(), line(target=None), line(target="「」")]))
    write(tmp_path, "other/rows.csv", "ask,reply\nq,a\n")
    write(tmp_path, "script/script.py", "raise SystemExit('run')")
    splits = [{"split": name, "path": f"data/{file}.jsonl"} for name, file in (("train", "main"), ("test", "held"))]
    write(
        tmp_path, "told/README.md", f"---\n{yaml.dump({'configs': [{'config_name': 'a', 'data_files': splits}]})}---\n"
    )
    write(tmp_path, "told/data/main.jsonl", line(context="m") + "\n" + line(context="n"))
    write(tmp_path, "told/data/held.jsonl", line(context="h"))
    datasets = {f"owner/{name}": tmp_path / name for name in ("good", "other", "script", "told")}
    cases = [{"source": f"owner/{name}"} for name in ("good", "other", "script", "none")]
    cases += [{"source": "owner/good", "split": "test"}, {"source": "owner/good", "name": "english"}]
    cases += [{"source": ["owner/good", "owner/good", str(tmp_path / "good/train.jsonl")]}]
    contents = {"train": ["m", "n"], "test": ["h"]}
    saved = {name: Dataset.from_list([GOOD | {"context": c} for c in found]) for name, found in contents.items()}
    DatasetDict(saved).save_to_disk(str(tmp_path / "saved"))
    ways = ["owner/told", str(tmp_path / "told"), str(tmp_path / "saved")]
    cases += [{"source": way, "split": split} for way in ways for split in ("train", "test", "validation")]
    with HubServer(datasets=datasets) as hub:
        command = [sys.executable, "-c", HUB_CASES, json.dumps(cases)]
        done = subprocess.run(command, env=hub_environment(hub, tmp_path / "home"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    good, other, script, none, split, name, mixed, *three_ways = map(json.loads, done.stdout.splitlines())
    assert good[:2] == ["owner/good [train], row 3", ["", "null in 'target'", "nothing said in 'target': '「」' (str)"]]
    assert mixed[:2] == [f"{tmp_path / 'good/train.jsonl'}, line 3", good[1] * 3]
    for train, test, validation in zip(three_ways[::3], three_ways[1::3], three_ways[2::3], strict=True):
        assert (train[2], test[2], validation[0]) == (["m", "n"], ["h"], "SettingError")
    assert other[0] == "DataError"
    assert "no column 'context'; the columns are ask, reply" in other[1]
    assert script[0] != "SettingError"
    assert "scripts are no longer supported" in script[1]
    assert none[0] == "MissingFileError"
    assert "owner/none" in none[1]
    assert split[0] == "SettingError"
    assert "test" in split[1]
    assert "train" in split[1]
    assert name[0] == "SettingError"
    assert "english" in name[1]


def test_read_jsonl_file_reads_all_or_says_where_it_cannot(tmp_path: Path) -> None:
    write(tmp_path, "rows.jsonl", '{"a": 1}\n\n{"a": 2}{"a": 3}\n')
    assert read_jsonl_file(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}, {"a": 3}]
    write(tmp_path, "rows.jsonl", '{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: broken JSON: Expecting value"):
        read_jsonl_file(tmp_path / "rows.jsonl")
    write(tmp_path, "rows.jsonl", "[1]\n")
    with pytest.raises(DataError, match="line 1: list instead of an object"):
        read_jsonl_file(tmp_path / "rows.jsonl")
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl: there is no such file"):
        read_jsonl_file(str(tmp_path / "none.jsonl"))


def test_collate_fn_takes_items_apart() -> None:
    assert collate_fn([{"input": "a", "answer": "b", "source": ""}, {"input": "c", "answer": "d"}]) == (
        ["a", "c"],
        ["b", "d"],
    )
