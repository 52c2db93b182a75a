"""`kyon-pl report` of one run, of two compared, and of a failed run."""

from __future__ import annotations

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from imported import OPTIONAL, imported_by
from reply_runs import curves, events
from tensorboard.plugin_util import markdown_to_safe_html

from kyon_pl.cli import main
from kyon_pl.evaluation.report_messages import MESSAGES
from kyon_pl.publish.model_card import model_card


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Cells(HTMLParser):
    """The tables of a page below its headings, by the text of the last cell of their rows and by that of the first."""

    def __init__(self, page: str, heading: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside, self.cell = False, False
        self.feed(page.partition(f"{heading}</h2>")[2].partition("<h2")[0])

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        self.cell = tag in ("td", "th") or (self.cell and tag == "code")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.rows[-1][-1] += data


def rows_of(page: str, heading: str) -> dict[str, list[str]]:
    """The cells of the tables below a heading, by the first cell, or by the last one of metrics."""
    rows = [row for row in Cells(page, heading).rows[1:] if row]
    return {row[-1]: row[:-1] for row in rows} if heading.startswith("Metrics") else {row[0]: row[1:] for row in rows}


def written(folder: Path) -> str:
    """The HTML, after comparing all its words with those of the Markdown, rendered by TensorBoard's converter."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    rendered = markdown_to_safe_html((folder / "report.md").read_text(encoding="utf-8"))
    for heading in re.findall(r"<h2>(.*?)</h2>", page):
        for cells in Cells(rendered, heading).rows if "eplies to" not in heading else []:
            assert all(
                html.escape(cell).replace("&#x27;", "&#39;") in page.replace("&#x27;", "&#39;") for cell in cells
            )
    return page


def test_values_agree_with_the_event_files(runs: dict[str, Path]) -> None:
    run = runs["on"]
    main(["report", str(run)])
    page, drawn = written(run / "report"), curves(run)
    shown = rows_of(page, "Metrics")
    names = [name.removeprefix("val/") for name in drawn if name.startswith("val/") and "base_replies" not in name]
    assert set(shown) == set(names) > {"loss", "replies/chrf"}
    for name in names:
        tuned = drawn[f"val/{name}"][-1][1]
        base = drawn[f"val/base_{name}"][0][1] if name.startswith("replies/") else None
        assert shown[name][1:3] == ["–" if base is None else f"{base:.4g}", f"{tuned:.4g}"], name
    rates = [event.value for event in events(run).Scalars("train/tokens_per_s")]
    assert rows_of(page, "Speed and time")["tokens per second"] == [f"{sum(rates) / len(rates):.4g}"]
    assert rows_of(page, "Settings")["model.lora.r"] == ["16"]
    row = json.loads((run / "held_out_replies.jsonl").read_text(encoding="utf-8").splitlines()[0])
    text = html.unescape((run / "report/report.md").read_text(encoding="utf-8")).replace("\\", "")
    for reply in (row["reference"], row["base"], row["replies"][-1]["reply"]):
        assert reply in text
        assert html.escape(reply) in page
    assert rows_of(page, "Data")["training"][0] == "800"
    assert "finished at step 4" in page
    for picture in ("loss", "replies", "training"):
        assert f"]({picture}.png)" in text
        assert (run / f"report/{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert not re.search(r"&#4[56];|&#58;", (run / "report/report.md").read_text(encoding="utf-8")), "over-escaped"


def test_one_number_everywhere(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the event files, the scores of validate in the terminal and scores.md, the report and the model card."""
    run = runs["on"]
    words = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/step=4.ckpt")]
    main(["validate", *words, "--held_out.validate_rows", "2", "--held_out.max_new_tokens", "4"])
    terminal = capsys.readouterr().err
    validated = tmp_path / "lightning_logs/version_0"
    main(["report", str(validated), str(run), "--output", "both"])
    main(["report", str(validated), "--output", "one"])
    scores = (validated / "scores.md").read_text(encoding="utf-8").splitlines()
    table = {name: cells for name, *cells in (line.strip("| ").split(" | ") for line in scores if line[:1] == "|")}
    reported, drawn = rows_of(written(Path("one")), "Metrics"), curves(validated)
    assert {"loss", "perplexity", "chrf", "stop_rate"} <= table.keys()
    for name, (base, tuned, *_) in table.items():
        tag = name if name in ("loss", "perplexity") else f"replies/{name}"
        if tag not in reported:
            continue
        value = drawn[f"val/{tag}"][-1][1]
        assert reported[tag][2] == f"{value:.4g}"
        assert tuned == f"{value:.2f}"
        if tag.startswith("replies/"):
            bare = drawn[f"val/base_{tag}"][-1][1]
            assert (base, reported[tag][1]) == (f"{bare:.2f}", f"{bare:.4g}")
        assert re.search(rf"  {name} .*{re.escape(tuned)}", terminal)
    fitted = curves(run)["val/loss"][-1][1]
    assert drawn["val/loss"][-1][1] == pytest.approx(fitted, rel=1e-5)  # the last validation of fit, done again
    card = str(model_card(run / "checkpoints/step=4", "user/name", None))
    assert f"| loss | {fitted:.4f} |" in card
    assert f"{fitted:.4g}" in rows_of(written(Path("both")), "Metrics")["loss"][2]


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
    assert losses[1:] == [losses[1]] * 2  # replies change nothing
    assert rows_of(text, "Metrics")["replies/chrf"][2] == "–"
    assert "There are no sample replies: held_out is null." in text.partition("and why: off</h2>")[2]
    files = {"report.md", "report.html", "loss.png", "replies.png"}
    assert {path.name for path in Path("compared").iterdir()} >= files


def test_runs_of_the_same_name_get_unique_names(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("on", "off"):
        shutil.copytree(runs[name], tmp_path / f"{name}/lightning_logs/version_0")
    main(["report", "on/lightning_logs/version_0", "off/lightning_logs/version_0", "--output", "compared"])
    (head,) = re.findall("<h1>(.*)</h1>", written(Path("compared")))
    assert head == "Training report: on/lightning_logs/version_0 and off/lightning_logs/version_0"


def test_report_of_a_failed_run(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "runs/failed"
    shutil.copytree(runs["on"], run, ignore=shutil.ignore_patterns("report"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"finished_at_step": None}))
    (run / "config.yaml").write_text("model: {base: dem")
    with (run / "run.log").open("a", encoding="utf-8") as log:
        log.write("2026-01-02 03:04:05,678 rank 0 ERROR   stopped at step 3: ValueError: <b>no</b>\n")
    main(["report", str(run)])
    page = written(run / "report")
    assert "<b>no" not in page
    assert "&lt;b&gt;no" not in (run / "report/report.md").read_text(encoding="utf-8").partition("## Warnings")[0]
    assert "NOT FINISHED: curves up to step 4" in page
    assert "The last line of the run: stopped at step 3: ValueError: &lt;b&gt;no&lt;/b&gt;" in page
    assert "Cannot be read: config.yaml: " in page
    for file in run.iterdir():
        if file.is_file() and file.name != "run.log":
            file.unlink()
    main(["report", str(run), "--output", "nothing"])
    page = written(Path("nothing"))
    assert "There are no curves: config.yaml, which would say why, cannot be read." in page
    assert "The folder has no run.json." in page
    assert {path.name for path in Path("nothing").iterdir()} == {"report.md", "report.html"}


def test_a_report_in_chinese(runs: dict[str, Path]) -> None:
    main(["report", str(runs["on"]), "--language", "zh", "--output", "zh"])
    page = (Path("zh") / "report.html").read_text(encoding="utf-8")
    text = (Path("zh") / "report.md").read_text(encoding="utf-8")
    assert '<html lang="zh-Hans">' in page
    assert re.search(r"\d{4}年\d{1,2}月\d{1,2}日 \d\d:\d\d", text)
    assert re.search(r"\| 用时 \| \d+ 秒 \|", text)
    sentences = [english for english, _ in MESSAGES.values() if " " in english.strip() and "{" not in english]
    assert len(sentences) > 40
    for shown in (text, re.sub("<.*?>", "\n", page.partition("<main>")[2])):
        own = shown.partition("run.log 原文")[0]
        assert [english for english in sentences if re.search(rf"(?<!\w){re.escape(english)}(?!\w)", own)] == []
        assert [line for line in own.splitlines() if re.search(r"[a-z]+ [a-z]+ [a-z]+", line)] == []


@pytest.mark.parametrize("name", ["report.md", "report.html", "loss.png"])
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
