"""`kyon-pl report` of one run, of two compared, and of a failed run."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest
from imported import OPTIONAL, imported_by
from reply_runs import curves, events

from kyon_pl.cli import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows_of(markdown: str, heading: str) -> dict[str, list[str]]:
    """The cells of the first table below a heading, by the first cell of their row."""
    lines = markdown.partition(f"## {heading}")[2].splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("| ---"))
    rows = [re.fullmatch(r"\| (.*) \|", line) for line in lines[start + 1 :]]
    end = rows.index(None) if None in rows else len(rows)
    cells = [[html.unescape(cell.strip()) for cell in row[1].split("|")] for row in rows[:end] if row]
    return {name.strip("`"): values for name, *values in cells}


def written(folder: Path) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


def test_values_agree_with_the_event_files(runs: dict[str, Path]) -> None:
    run = runs["on"]
    main(["report", str(run)])
    text, drawn = written(run / "report"), curves(run)
    shown = rows_of(text, "Metrics")
    names = [name.removeprefix("val/") for name in drawn if name.startswith("val/") and "base_replies" not in name]
    assert set(shown) == set(names) > {"loss", "replies/chrf"}
    for name in names:
        tuned = drawn[f"val/{name}"][-1][1]
        base = drawn[f"val/base_{name}"][0][1] if name.startswith("replies/") else None
        assert shown[name] == [f"{'–' if base is None else f'{base:.4g}'} → {tuned:.4g}"], name
    rates = [event.value for event in events(run).Scalars("train/tokens_per_s")]
    assert rows_of(text, "Times")["train/tokens_per_s, mean of its entries"] == [f"{sum(rates) / len(rates):.4g}"]
    assert rows_of(text, "Settings")["model.lora.r"] == ["16"]
    row = json.loads((run / "held_out_replies.jsonl").read_text(encoding="utf-8").splitlines()[0])
    sample = rows_of(text, "Replies to held-out questions")
    assert sample["reference"] == [row["reference"]]
    assert sample["base"] == [row["base"]]
    assert sample["version_0"][0].startswith(row["replies"][-1]["reply"])
    assert "data: train: 800 rows" in text
    assert "finished at step 4" in text
    for picture in ("loss", "replies", "training"):
        assert f"![{picture}]({picture}.png)" in text
        assert (run / f"report/{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_it_needs_no_torch(runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["report", str(runs["on"]), "--output", str(tmp_path)]
    assert imported_by(words, "torch", *OPTIONAL) == []


def test_runs_are_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("on", "off"):
        shutil.copytree(runs[name], tmp_path / f"runs/{name}", ignore=shutil.ignore_patterns("report"))
    main(["report", "runs/on", "runs/off", "--output", "compared"])
    text = written(Path("compared"))
    assert set(rows_of(text, "Settings that differ")) == {
        f"held_out.{name}"
        for name in (
            "fit_rows",
            "validate_rows",
            "every_n_validations",
            "compare_base",
            "max_new_tokens",
            "rows_per_batch",
        )
    }
    losses = rows_of(text, "Metrics")["loss"]
    assert losses == [losses[0]] * 2  # replies change nothing
    assert rows_of(text, "Metrics")["replies/chrf"][1] == "– → –"
    assert "Missing in off: no held_out_replies" in html.unescape(text)
    assert {path.name for path in Path("compared").iterdir()} >= {"report.md", "loss.png", "replies.png"}


def test_runs_of_the_same_name_get_unique_names(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("on", "off"):
        shutil.copytree(runs[name], tmp_path / f"{name}/lightning_logs/version_0")
    main(["report", "on/lightning_logs/version_0", "off/lightning_logs/version_0", "--output", "compared"])
    heads = [line for line in written(Path("compared")).splitlines() if line.startswith("# ")]
    assert [html.unescape(line) for line in heads] == ["# on/lightning_logs/version_0 and off/lightning_logs/version_0"]


def test_report_of_a_failed_run(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "runs/failed"
    shutil.copytree(runs["on"], run, ignore=shutil.ignore_patterns("report"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"finished_at_step": None}))
    (run / "config.yaml").write_text("model: {base: dem")
    with (run / "run.log").open("a", encoding="utf-8") as log:
        log.write("2026-01-02 03:04:05,678 rank 0 ERROR   stopped at step 3: ValueError: <b>no</b>\n")
    main(["report", str(run)])
    text = written(run / "report")
    assert "<b>" not in text.partition("## Warnings")[0]
    seen = html.unescape(text)
    assert "NOT FINISHED: curves up to step 4; its last line: stopped at step 3: ValueError: <b>no</b>" in seen
    assert "config.yaml: " in seen
    for file in run.iterdir():
        if file.is_file() and file.name != "run.log":
            file.unlink()
    main(["report", str(run), "--output", "nothing"])
    assert "no curves" in written(Path("nothing"))
    assert [path.name for path in Path("nothing").iterdir()] == ["report.md"]


@pytest.mark.parametrize("name", ["report.md", "loss.png"])
def test_a_file_from_elsewhere_stays_and_a_report_is_replaced(
    name: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine" / name
    mine.parent.mkdir()
    mine.write_bytes(b"# of the user")
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(runs["on"]), "--output", "mine"])
    assert stopped.value.code == 2
    assert f"{mine} exists and is from elsewhere" in capsys.readouterr().err
    assert [path.read_bytes() for path in mine.parent.iterdir()] == [b"# of the user"]
    mine.unlink()
    for _ in range(2):
        main(["report", str(runs["on"]), "--output", "mine"])
    text, picture = Path("mine/report.md"), Path("mine/loss.png")
    picture.write_bytes(picture.read_bytes().replace(b"kyon_pl", b"unknown"))  # as an earlier version wrote it
    main(["report", str(runs["on"]), "--output", "mine"])
    assert b"kyon_pl" in picture.read_bytes()
    assert text.is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "it contains no run"),
        ([], "runs"),
        (["x", "x"], "each once"),
        (["x", "--wrong", "y"], "wrong: there is no such"),
    ],
)
def test_refused_arguments(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["report", *words])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
