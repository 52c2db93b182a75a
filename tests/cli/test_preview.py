"""`kyon-pl preview`: what it shows is what stands in the rows, and what training will get."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from kyon_pl.cli import main
from kyon_pl.data import DialogueDataModule
from kyon_pl.demo import ASSETS
from kyon_pl.preview.command import preview

ROOT = Path(__file__).parents[2]
DEMO = ["preview", "--config", str(ROOT / "configs/demo.yaml")]
HEADING = re.compile(
    r"── (?:pack|batch) \d+, row \d+ of \d+, (?:tokens ([\d,]+)–([\d,]+), )?"
    r"([\d,]+) masked \+ ([\d,]+) trained · (\S+), line (\d+)(?: · ([\d,]+) tokens of its context removed)?"
)
Shown = list[tuple[re.Match[str], str]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)


def shown_rows(text: str) -> Shown:
    """Heading and body of each row."""
    blocks = text.split("\ncounts\n")[0].split("── ")[1:]
    parts = [f"── {block}".split("\n", 1) for block in blocks]
    return [(re.fullmatch(HEADING, heading), body.strip("\n")) for heading, body in parts]


def as_shown(row: dict[str, Any]) -> str:
    """A row of text whose characters all have pieces of their own."""
    context, target = (row[name].replace("\n", "‹↵›\n") for name in ("context", "target"))
    return f"‹[gMASK]›‹sop›▁{context}⟦▁{target}‹</s>›⟧"


def number(text: str) -> int:
    return int(text.replace(",", ""))


def line_of(file: Path, number: str) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8").splitlines()[int(number) - 1])


def test_demo_rows_are_shown_as_they_stand_in_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Context masked, reply and end of sequence trained, nothing else; packs without gaps; counts that add up."""
    main([*DEMO, "--rows", "40"])
    text = capsys.readouterr().out
    rows = shown_rows(text)
    assert len(rows) == 40
    start = 0
    for heading, body in rows:
        first, last, masked, trained = (number(heading[group]) for group in range(1, 5))
        assert body.split("‹pad")[0] == as_shown(line_of(ASSETS / heading[5], heading[6]))
        start = start if first else 0  # a new pack
        assert first == start
        assert last + 1 - start == masked + trained
        start = last + 1
        if "‹pad" in body:
            assert body.endswith(f"‹pad × {1024 - start}›")
    assert "‹pad" in text
    slots, masked, trained, padding = (
        number(re.search(rf"^ +{name} +([\d,]+)", text, re.MULTILINE)[1])
        for name in ("tokens per epoch", "masked context", "trained", "padding")
    )
    assert masked + trained + padding == slots
    assert slots % 1024 == 0
    bars = re.findall(r"^ +[\d,–]+  [█▏▎▍▌▋▊▉]* ([\d,]+)$", text, re.MULTILINE)
    total = len((ASSETS / "train.jsonl").read_text(encoding="utf-8").splitlines())
    assert sum(map(number, bars)) == total
    assert text.splitlines()[-1] == (
        f"preview: 40 of {total} rows shown; nothing written (--png FILE writes the histograms)"
    )


def module(**settings: Any) -> DialogueDataModule:
    defaults = {"validation_share": 0.0, "max_tokens": 64, "tokens_per_batch": 64, "processes": 1, "shuffle": False}
    return DialogueDataModule(**defaults | {"cache_dir": "cache"} | settings)


def write(rows: list[Any]) -> str:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.jsonl"


IDS = [{"input_ids": [5] * count + [7, 2], "seq_len": count} for count in (1, 40, 3, 30)]


def test_boundaries_and_padding_of_packs(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of ids need no tokenizer, and are shown as numbers."""
    preview(module(source=write(IDS)), rows=4)
    rows = shown_rows(capsys.readouterr().out)
    assert [heading.groups()[:2] for heading, _ in rows] == [("0", "41"), ("42", "46"), ("47", "49"), ("0", "31")]
    assert rows[1][1] == "▁5 5 5⟦▁7 2⟧"
    assert [body.partition("‹")[2] for _, body in rows] == ["", "", "pad × 14›", "pad × 32›"]


def test_padding_of_padded_batches_and_the_original_boundary(capsys: pytest.CaptureFixture[str]) -> None:
    preview(module(source=write(IDS), batching="padded", rows_per_batch=2, label_boundary="seed"), rows=3)
    text = capsys.readouterr().out
    rows = shown_rows(text)
    assert [heading[6] for heading, _ in rows] == ["2", "1", "4"]
    assert rows[1][1] == "▁5⟦▁7 2⟧‹pad × 39›"  # what is labelled at place 0 cannot be learned
    assert rows[2][1].endswith(" 5⟦▁5 7 2⟧")
    assert re.search(r"padding +66 +", text)


def test_bad_and_shortened_rows_are_counted_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """With no more of a base than its tokenizer."""
    Path("tokenizer").mkdir()
    shutil.copy(ASSETS / "base/tokenizer.model", "tokenizer")
    long = {"context": "你在扮演老榫###" + "镇上的人都知道###" * 40 + "「在吗？」", "target": "老榫:「在。」"}
    lines = [*(ASSETS / "bad_rows.jsonl").read_text(encoding="utf-8").splitlines(), json.dumps(long)]
    Path("rows.jsonl").write_text("\n".join(lines))
    preview(module(source="rows.jsonl", tokenizer="tokenizer"), rows=1)
    text = capsys.readouterr().out
    assert re.search(r"training rows +1 +of 14 read\n", text)
    kinds = re.findall(r"skipped +(\d+) +(.*)", text)
    assert sum(int(count) for count, _ in kinds) == 13
    assert {("2", "empty 'target'"), ("1", "broken JSON"), ("1", "too long")} <= set(kinds)
    cut = re.search(r"line 14 · (\d+) tokens of its context removed\n", text)[1]
    assert re.search(rf"shortened +1 +to 64 tokens; {cut} tokens of their contexts removed", text)


def test_colours_only_where_they_can_be_seen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = module(source=write(IDS))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    preview(data, rows=1)
    coloured = capsys.readouterr().out
    assert "5\x1b[0m\x1b[1;32m▁7 2\x1b[0m\n" in coloured
    assert "\x1b[38;5;245m▁5" in coloured
    assert "⟦" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    preview(data, rows=1)
    assert "\x1b" not in capsys.readouterr().out


def test_every_key_of_a_saved_config_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *DEMO[1:], "--print_config"])
    Path("config.yaml").write_text(capsys.readouterr().out)
    main(["preview", "--config", "config.yaml", "--rows", "0", "--data.source", str(ASSETS / "validation.jsonl")])
    assert capsys.readouterr().out.splitlines()[-1].startswith("preview: 0 of ")


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["--data.sorce", "x"], ["data.sorce", "no such setting", "data.source"]),
        (["--rows", "-1"], ["--rows: -1"]),
        (["--png", "x.png"], ["--png", "matplotlib", "pip install 'kyon-pl[report]'"]),
    ],
)
def test_errors_are_one_paragraph(
    words: list[str], texts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as stopped:
        main([*DEMO, *words])
    assert stopped.value.code == 2
    paragraph = capsys.readouterr().err.strip()
    assert "\n" not in paragraph
    assert all(text in paragraph for text in texts)


def test_a_name_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    """An escape sequence in the name of a data file or of the picture is not written to the terminal."""
    rows = Path(write(IDS)).rename("a\x1b]0;a\x07b.jsonl")
    preview(module(source=str(rows)), rows=1, png="c\x1b]0;c\x07d.png")
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "a\ufffd]0;a\ufffdb.jsonl, line" in said.out
    assert "c\ufffd]0;c\ufffdd.png" in said.out


def test_histograms_as_a_png(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    preview(module(source=write(IDS)), rows=0, png="h.png")
    assert Path("h.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert capsys.readouterr().out.splitlines()[-1] == "preview: 0 of 4 rows shown; histograms written to h.png"


@pytest.mark.skipif(
    not {"KYON_CHATGLM2_DIR", "KYON_REAL_DATA_DIR"} <= set(os.environ),
    reason="KYON_CHATGLM2_DIR and KYON_REAL_DATA_DIR are not both set",
)
def test_real_rows_are_shown_as_they_stand_in_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Three hundred rows, whatever they hold. A shortened one shows less of its context, and the same target."""
    with (Path(os.environ["KYON_REAL_DATA_DIR"]) / "fusion_sample.jsonl").open(encoding="utf-8") as stream:
        Path("rows.jsonl").write_text("".join(islice(stream, 300)), encoding="utf-8")
    settings = {"tokenizer": os.environ["KYON_CHATGLM2_DIR"], "max_tokens": 1600, "tokens_per_batch": 8192}
    preview(module(source="rows.jsonl", **settings), rows=300)
    rows = shown_rows(capsys.readouterr().out)
    assert len(rows) == 300
    assert {heading[7] is None for heading, _ in rows} == {True, False}
    for heading, body in rows:
        expected = as_shown(line_of(Path("rows.jsonl"), heading[6]))
        found = body.split("‹pad")[0]
        assert found == expected if heading[7] is None else found.endswith(expected[expected.index("⟦") :])
