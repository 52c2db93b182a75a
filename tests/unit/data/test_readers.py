"""What people have on disk: layouts of JSON, encodings, compression, tables and folders; each gives the same rows."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet

from kyon_pl.data.reading.columns import ColumnNames
from kyon_pl.data.reading.files import guesses, local_files
from kyon_pl.data.reading.sources import Rows, SourceSettings, load_rows
from kyon_pl.errors import KyonError

ROWS = [
    {"context": "你是沈七。###掌柜的，可有止咳的药？", "target": "有是有，先说是谁咳。"},
    {"context": "你是沈七。###你不怕查账？", "target": '怕？我怕的是药潮了；"官老爷"可不潮|\t\n等着。'},
    {"context": "你是沈七。###今晚城门要闭。", "target": "闭就闭，药铺又不出城。"},
]


def load(tmp_path: Path, source: Path | str, **more: Any) -> Rows:
    return load_rows(SourceSettings(str(source), **more), str(tmp_path / "cache"))


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def csv_text(delimiter: str, end: str = "\r\n") -> str:
    lines = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    quoted = (['"' + cell.replace('"', '""') + '"' for cell in line] for line in lines)
    return end.join(map(delimiter.join, quoted)) + end


LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
ARRAY = json.dumps(ROWS, ensure_ascii=False)
PRETTY = json.dumps(ROWS, ensure_ascii=False, indent=2)
OBJECTS = "\n".join(json.dumps(row, ensure_ascii=False, indent=2) for row in ROWS)
WRAPPED = json.dumps({"version": 1, "data": ROWS, "license": None}, ensure_ascii=False)
TABBED = csv_text("\t")
# a file's name, its bytes, and the place of its last row
FILES = {
    "lines": ("a.jsonl", LINES.encode(), "line 3"),
    "lines of another name": ("a.json", LINES.encode(), "row 3"),
    "array on a line": ("a.json", ARRAY.encode(), "row 3"),
    "array called jsonl": ("a.jsonl", ARRAY.encode(), "line 1"),
    "pretty array": ("a.json", PRETTY.encode(), "row 3"),
    "pretty array called ndjson": ("a.ndjson", PRETTY.encode(), "line 10"),
    "pretty objects": ("a.jsonl", OBJECTS.encode(), "line 9"),
    "pretty objects called json": ("a.json", ("\n\n" + OBJECTS + "\n").encode(), "row 3"),
    "wrapped": ("a.json", WRAPPED.encode(), "row 3"),
    "wrapped and pretty": ("a.jsonl", json.dumps({"rows": ROWS}, indent=1).encode(), "line 1"),
    "byte order mark": ("a.json", PRETTY.encode("utf-8-sig"), "row 3"),
    "UTF-16 lines": ("a.jsonl", LINES.encode("utf-16"), "line 3"),
    "UTF-16 array": ("a.json", PRETTY.encode("utf-16"), "row 3"),
    "UTF-16 without a mark": ("a.jsonl", LINES.encode("utf-16-le"), "line 3"),
    "UTF-32": ("a.jsonl", LINES.encode("utf-32"), "line 3"),
    "GB18030 lines": ("a.jsonl", LINES.encode("gb18030"), "line 3"),
    "GB18030 array": ("a.json", PRETTY.encode("gb18030"), "row 3"),
    "gzip": ("a.jsonl.gz", gzip.compress(LINES.encode()), "line 3"),
    "two gzip members": (
        "a.jsonl.gz",
        gzip.compress(LINES[:50].encode()) + gzip.compress(LINES[50:].encode()),
        "line 3",
    ),
    "gzip without its suffix": ("a.jsonl", gzip.compress(LINES.encode()), "line 3"),
    "gzip of UTF-16": ("a.json.gz", gzip.compress(PRETTY.encode("utf-16")), "row 3"),
    "zstd": ("a.jsonl.zst", zstd(LINES.encode()), "line 3"),
    "zstd array": ("A.JSON.ZST", zstd(PRETTY.encode()), "row 3"),
    "commas": ("a.csv", csv_text(",").encode(), "line 5"),
    "semicolons": ("a.csv", csv_text(";").encode("utf-8-sig"), "line 5"),
    "bars": ("a.csv", csv_text("|", "\n").encode(), "line 5"),
    "tabs": ("a.tsv", TABBED.encode(), "line 5"),
    "tabs called csv": ("a.csv", TABBED.encode("utf-16"), "line 5"),
    "commas called tsv": ("a.tsv", csv_text(",").encode(), "line 5"),
    "Excel's separator line": ("a.csv", ("sep=;\r\n" + csv_text(";")).encode(), "line 6"),
    "another separator": ("a.csv", ("sep=^\r\n" + csv_text("^")).encode(), "line 6"),
    "GB18030 table": ("a.csv", csv_text(",").encode("gb18030"), "line 5"),
    "gzip table": ("a.csv.gz", gzip.compress(csv_text(";").encode("gb18030")), "line 5"),
    "zstd table": ("a.tsv.zst", zstd(TABBED.encode()), "line 5"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    file, content, place = FILES[name]
    (tmp_path / file).write_bytes(content)
    rows = load(tmp_path, tmp_path / file)
    assert rows.dataset["problem"][:] == [""] * 3
    found = [{"context": row["context"], "target": row["target"].replace("\r\n", "\n")} for row in rows.dataset]
    assert found == ROWS
    assert rows.place(2) == f"{tmp_path / file}, {place}"


def test_values_longer_than_a_piece_are_read(tmp_path: Path) -> None:
    """And one that is cut anywhere: each length puts the end of the first piece elsewhere."""
    rows = [{"context": "c" * length, "target": "\\\u0000\ud83d\ude00"} for length in (65_400, 70_000, 200_000)]
    rows += [{"context": "c" * (65_490 + n), "target": "tail", "score": -1.5e10, "seen": True} for n in range(60)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    found = load(tmp_path, tmp_path / "a.json").dataset
    assert [len(text) for text in found["context"][3:]] == [65_490 + n for n in range(60)]
    assert found["problem"][:3] == ["no text in 'target': it holds a NUL, as binary data does"] * 3
    assert found["row"][:] == [*range(1, 64)]


def test_a_cell_has_the_limit_of_a_line(tmp_path: Path) -> None:
    for length in (140_000, 1_000_000, 1_000_001):
        row = {"context": "c" * length, "target": "t"}
        (tmp_path / f"{length}.jsonl").write_text(json.dumps(row) + '\n{"context": "c", "target": "t"}\n')
        (tmp_path / f"{length}.csv").write_text(f"context,target\n{row['context']},t\nc,t\n")
        problems = [
            load(tmp_path, tmp_path / f"{length}{suffix}").dataset["problem"][:] for suffix in (".jsonl", ".csv")
        ]
        assert problems[0] == problems[1] == ["too long: 1,000,001 characters in 'context'" * (length > 1e6), ""]


SHEET = (
    '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>{}</sheetData></worksheet>'
)
BOOK = """<workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"
 xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"><sheets>
 <sheet name="沈七" sheetId="1" r:id="rId7"/><sheet name="old" sheetId="2" r:id="rId1"/></sheets></workbook>"""
RELATIONS = """<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
 <Relationship Id="rId1" Target="worksheets/sheet1.xml"/><Relationship Id="rId7" Target="/xl/worksheets/sheet9.xml"/>
 </Relationships>"""
TEXTS = """<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><si><t>context</t></si>
 <si><r><rPr/><t xml:space="preserve">two </t></r><r><t>runs</t></r><rPh><t>TOO</t></rPh></si></sst>"""
CELLS = """<row r="2"><c r="B2" t="s"><v>0</v></c><c r="C2" t="inlineStr"><is><t>target</t></is></c></row>
 <row r="3"/><row r="4"><c r="B4" t="s"><v>1</v></c><c r="C4"><v>42</v></c></row>
 <row><c/><c t="str"><f>A1</f><v>a_x000D_&amp;</v></c>
 <c t="inlineStr"><is><r><t>in</t></r><r><t>line</t></r></is></c></row>
 <row r="9"><c r="C9" t="b"><v>1</v></c></row>"""


def write_excel(path: Path, **changes: str) -> None:
    parts = {
        "workbook": BOOK,
        "_rels/workbook": RELATIONS,
        "sharedStrings": TEXTS,
        "worksheets/sheet9": SHEET.format(CELLS),
    }
    with zipfile.ZipFile(path, "w") as book:
        for name, content in (parts | changes).items():
            book.writestr(f"xl/{name}.xml{'.rels' if '_rels' in name else ''}", content)


def test_the_first_sheet_of_an_excel_file_is_read(tmp_path: Path) -> None:
    write_excel(tmp_path / "a.xlsx")
    rows = load(tmp_path, tmp_path / "a.xlsx")
    assert list(zip(rows.dataset["context"][:], rows.dataset["target"][:], rows.dataset["row"][:], strict=True)) == [
        ("two runs", "42", 4),
        ("a\r&", "inline", 5),
        ("", None, 9),
    ]
    assert rows.dataset["problem"][2] == "null in 'context'"
    assert rows.place(0) == f"{tmp_path / 'a.xlsx'}, row 4"
    assert guesses(tmp_path / "a.xlsx") == ["sheet '沈七' is read, and not 'old'"]


def test_what_was_guessed_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv_text(";").encode("gb18030"))
    assert guesses(tmp_path / "a.csv") == ["in GB18030", "separated by semicolons"]
    for encoding in ("utf-8", "utf-8-sig", "ascii"):
        (tmp_path / "a.csv").write_bytes("context,target\nc,t\n".encode(encoding))
        assert guesses(tmp_path / "a.csv") == []


def test_other_encodings_are_not_taken_for_chinese(tmp_path: Path) -> None:
    texts = {
        "latin-1": "Où est l'été? La société n'a rien dit, né à Besançon.",
        "cp1252": "Ça va très bien, mère – père!",
        "shift_jis": "それはとてもおもしろい話ですね。船はまだですか。",
    }
    for encoding, text in texts.items():
        (tmp_path / "a.csv").write_bytes(f"context,target\n{text * 3},t\n".encode(encoding))
        with pytest.raises(KyonError, match="not UTF-8"):
            load(tmp_path, tmp_path / "a.csv")


def test_only_the_needed_columns_of_parquet_and_arrow_are_read(tmp_path: Path) -> None:
    odd = pa.array([10**15], pa.int64()).cast(pa.timestamp("s")).cast(pa.timestamp("s", tz="UTC"))
    table = pa.table({"context": ["c"], "target": ["t"], "when": odd.cast(pa.timestamp("s", tz="Foo/Bar"), safe=False)})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow", "b.arrow"):
        row = load(tmp_path, tmp_path / name).dataset[0]
        assert (row["context"], row["target"], row["unread"]) == ("c", "t", ["when"])
    with pytest.raises(KyonError, match=r"a\.parquet: no column 'ask'; the columns are context, target, when"):
        load(tmp_path, tmp_path / "a.parquet", columns=ColumnNames("ask"))


NAMES = [
    "[Bo] rows 小船",
    "a*b",
    "what?",
    "ä 小 é",
    "a::b",
    "a:b",
    "[",
    "]",
    "[!x]",
    "{a,b}",
    'a b\'s "c"',
    "~x",
    "#1 %20",
    "$HOME",
]


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("train/rows.jsonl", "train/[1] more*.csv", "test/rows.jsonl"):
        (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / file).write_text("x")
    for source in (name, str(tmp_path / name), f"./{name}/"):
        found = local_files(source) or []
        assert sorted(file.name for file in found) == ["[1] more*.csv", "rows.jsonl"]
        assert {file.parent.name for file in found} == {"train"}
    assert [file.parent.name for file in local_files(f"./{name}", "test") or []] == ["test"]
    assert [file.name for file in local_files(f"{name}/train/*.csv") or []] == ["[1] more*.csv"]
    assert len(local_files(f"{name}/**/*.jsonl") or []) == 2


def saved(folder: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(str(folder), num_shards=2)


def test_saved_data_sets_are_read_in_order(tmp_path: Path) -> None:
    shuffled = Dataset.from_list(ROWS * 4).shuffle(seed=1)
    shuffled.save_to_disk(str(tmp_path / "one" / "saved [1]"), num_shards=3)
    rows = load(tmp_path, tmp_path / "one" / "saved [1]")
    assert rows.dataset["context"][:] == shuffled["context"][:]
    assert load(tmp_path, tmp_path / "one").dataset["problem"][:] == [""] * 12  # without its state.json


def told(folder: Path, header: str) -> None:
    folder.mkdir()
    (folder / "README.md").write_text(f"---\n{header}\n---\n# Bo\n")
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"context": name, "target": "t"}))


CONFIGS = "configs: [{config_name: x, data_files: a.jsonl}, {config_name: y, data_files: [{split: test, path: b*}]}]"


def test_the_configurations_of_a_readme_are_chosen_as_on_the_hub(tmp_path: Path) -> None:
    told(tmp_path / "two", CONFIGS)
    told(tmp_path / "default", CONFIGS.replace("name: y,", "name: y, default: true,"))
    told(tmp_path / "other", "license: mit")
    assert load(tmp_path, tmp_path / "two", name="x").dataset["context"][:] == ["a"]
    assert load(tmp_path, tmp_path / "two", name="y", split="test").dataset["context"][:] == ["b"]
    assert load(tmp_path, tmp_path / "default", split="test").dataset["context"][:] == ["b"]
    assert load(tmp_path, tmp_path / "other").dataset["context"][:] == ["a", "b"]
    (tmp_path / "two" / "README.md").write_text("# Bo\nno header\n")
    assert load(tmp_path, tmp_path / "two").dataset["context"][:] == ["a", "b"]


def damage(folder: Path) -> None:
    saved(folder)
    (folder / "data-00000-of-00002.arrow").unlink()


# what makes a source, and what the error says of it: the true reason, and a remedy for this reason
REFUSED: dict[str, tuple[Any, str, str]] = {
    "open quote": (
        b'context,target\nc,"t\n',
        "a.csv",
        "after line 1: broken CSV: unexpected end of data. Close the quote",
    ),
    "quote in a cell": (
        b'context,target\nc,"t"x\n',
        "a.csv",
        "after line 1: broken CSV: .* Quote the whole cell there",
    ),
    "other delimiter": (
        b"context^target\nc^t\n",
        "a.csv",
        r"seems to be separated by '\^': use one of commas, tabs, semi",
    ),
    "other delimiter, quoted": (b'"context":"target"\n', "a.csv", "Cells are separated by one of commas, tabs"),
    "no header": (
        "她说,我说\n".encode() * 3,
        "a.csv",
        "no column 'context'; the columns are 她说, 我说.*The first row must be",
    ),
    "cut gzip": (gzip.compress(LINES.encode())[:-20], "a.jsonl.gz", "cannot be read: .*. Check that it is complete"),
    "broken gzip": (b"\x1f\x8b" + b"x" * 50, "a.csv.gz", "cannot be read: "),
    "cut zstd": (zstd(LINES.encode())[:-20], "a.jsonl.zst", "cannot be read: .*. Check that it is complete"),
    "open array": (PRETTY[:-1].encode(), "a.jsonl", r"a\.jsonl, line \d+: broken JSON: "),
    "missing comma": (PRETTY.replace("},", "}").encode(), "a.json", "line 6: broken JSON: Expecting ',' delimiter"),
    "broken object": (OBJECTS.replace('",', '"').encode(), "a.json", "line 3: broken JSON: Expecting ',' delimiter"),
    "raw line break": (
        PRETTY.replace("\\n", "\n").encode(),
        "a.json",
        "line 8: broken JSON: Invalid control character",
    ),
    "array of another encoding": (
        '[\n{"context": "のと"}]'.encode("shift_jis"),
        "a.json",
        "not UTF-8: .* Save it as UTF-8",
    ),
    "cut UTF-16": (LINES.encode("utf-16")[:-1], "a.jsonl", "not UTF-16"),
    "rows in two keys": (
        json.dumps({"a": ROWS, "b": ROWS}).encode(),
        "a.json",
        "rows in several keys: a, b. Write the",
    ),
    "no zip": (b"\xd0\xcf\x11\xe0" * 9, "a.xlsx", r"not a readable \.xlsx file. Save it again .*without a password"),
    "old Excel": (b"\xd0\xcf\x11\xe0", "a.xls", r"suffix \.xls cannot be read.*\.xlsx"),
    "compressed Parquet": (b"\x1f\x8b", "a.parquet.gz", r"suffix \.gz cannot be read"),
    "broken Arrow": (b"ARROW1", "a.arrow", "not a readable Arrow file"),
    "broken sheet": (
        lambda path: write_excel(path, **{"worksheets/sheet9": "<a>"}),
        "a.xlsx",
        r"not a readable \.xlsx",
    ),
    "two equal columns": (
        lambda path: write_excel(path, sharedStrings=TEXTS.replace("context", "target")),
        "a.xlsx",
        "row 2: two columns are called 'target'",
    ),
    "damaged saved data": (damage, "a", "save_to_disk that cannot be loaded"),
    "no default configuration": (
        lambda path: told(path, CONFIGS),
        "a",
        "data.name: .* configurations x, y, and no default",
    ),
    "missing files": (
        lambda path: told(path, "configs: [{config_name: x, data_files: c*}]"),
        "a",
        "README.md: the files that it names for train are not there",
    ),
    "broken README": (
        lambda path: told(path, "configs: [{data_files: a}]"),
        "a",
        "README.md: its header cannot be read",
    ),
    "README of no YAML": (lambda path: told(path, "a: [b"), "a", "README.md: its header cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    made, file, message = REFUSED[name]
    if callable(made):
        made(tmp_path / file)
    else:
        (tmp_path / file).write_bytes(made)
    with pytest.raises(KyonError, match=message) as caught:
        load(tmp_path, tmp_path / file)
    assert "\n" not in str(caught.value)


# what is refused above, the advice of its message, and the same source after following it
FOLLOWED: dict[str, tuple[str, str, bytes, dict[str, Any]]] = {
    "open quote": ("Close the quote there", "b.csv", b'context,target\nc,"t"\n', {}),
    "quote in a cell": (
        'Quote the whole cell there, and write a quote inside a quoted cell twice (`""`)',
        "b.csv",
        b'context,target\nc,"""t""x"\n',
        {},
    ),
    "no header": (
        "Set data.context_column and data.target_column",
        "b.csv",
        "她说,我说\nc,t\n".encode(),
        {"columns": ColumnNames("她说", "我说")},
    ),
    "array of another encoding": ("Save it as UTF-8", "b.json", '[\n{"context": "のと", "target": "t"}]'.encode(), {}),
    "rows in two keys": (
        "Write the rows of each key to a file of its own",
        "b.json",
        json.dumps({"a": ROWS}).encode(),
        {},
    ),
    "missing comma": ("write one row per line (.jsonl)", "b.jsonl", LINES.encode(), {}),
    "no zip": ("as `CSV UTF-8`", "b.csv", csv_text(",").encode("utf-8-sig"), {}),
    "no default configuration": ("Set it to one of them", "a", b"", {"name": "x"}),
    "broken README": ("name the files as data.source", "a/a.jsonl", b'{"context": "c", "target": "t"}', {}),
} | {
    f"other delimiter, {name}": (name, "b.csv", csv_text(delimiter).encode(), {})
    for delimiter, name in ((",", "commas"), ("\t", "tabs"), (";", "semicolons"), ("|", "vertical bars"))
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_advice_of_a_message_works(tmp_path: Path, name: str) -> None:
    advice, file, content, options = FOLLOWED[name]
    made, refused, _ = REFUSED[name if name in REFUSED else "other delimiter"]
    if callable(made):
        made(tmp_path / refused)
    else:
        (tmp_path / refused).write_bytes(made)
    with pytest.raises(KyonError) as caught:
        load(tmp_path, tmp_path / refused)
    assert advice in str(caught.value)
    if content:
        (tmp_path / file).write_bytes(content)
    rows = load(tmp_path, tmp_path / file, **options)
    assert {*rows.dataset["problem"][:]} == {""}
