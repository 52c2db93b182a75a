"""The Markdown and the HTML of a report, from run folders that are written by hand; nothing is trained."""

from __future__ import annotations

import base64
import json
import re
import string
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from kyon_pl.cli import main
from kyon_pl.evaluation import report_html, report_markdown
from kyon_pl.evaluation.held_out import escape_markdown
from kyon_pl.evaluation.report import report_parts
from kyon_pl.evaluation.report_messages import MESSAGES, Language, words_in
from kyon_pl.evaluation.report_missing import missing
from kyon_pl.evaluation.run_folder import read_run_folders

HOSTILE = (
    "<img src=http://evil/x onerror=alert(1)> | **b** ![c](http://d/e.png) [f](javascript:g) `h` </p></main><script "
    "src=\"//evil/s.js\"></script> &lt; $i$ # j\n\n- k\x1b[31m ~~l~~ http://m.n <style>@import 'http://o'</style> 绵卷"
)
SETTINGS: dict[str, Any] = {
    "trainer": {"accelerator": "cpu", "logger": None, "num_sanity_val_steps": -1, "limit_val_batches": None},
    "model": {"base": "demo", "lora": {"init_args": {"r": 8}}},
    "data": {"source": "demo", "validation_source": "demo", "validation_share": 0.02, "test_source": None},
    "held_out": {"compare_base": True},
}
CURVES = {"train/loss": {1: 2.0, 2: 1.5}, "val/loss": {0: 2.5, 2: 1.0}, "val/perplexity": {0: 12.2, 2: 2.7}}


def changed(key: str, value: Any) -> dict[str, Any]:
    """The settings with one of them changed."""
    settings: dict[str, Any] = json.loads(json.dumps(SETTINGS))
    part, _, name = key.partition(".")
    if name:
        settings[part][name] = value
    else:
        settings[part] = value
    return settings


def write_run(
    folder: Path,
    settings: dict[str, Any] = SETTINGS,
    curves: dict[str, dict[int, float]] = CURVES,
    finished: int | None = 2,
    reply: str | None = "hello",
) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"finished_at_step": finished}))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))
    (folder / "run.log").write_text("2026-01-02 03:04:05,678 rank 0 INFO    kyon-pl fit: kyon_pl\n")
    if curves:
        writer = EventFileWriter(str(folder))
        for tag, points in curves.items():
            for step, value in points.items():
                writer.add_event(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])))
        writer.close()
    if reply is not None:
        row = {"row": 1, "prompt": f"###{reply}", "reference": reply, "base": reply}
        row["replies"] = [{"step": 2, "reply": reply, "stopped": False}]
        (folder / "held_out_replies.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder


class Page(HTMLParser):
    """The tags, the addresses in attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


OUR_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "h4", "p", "ul", "li", "dl", "dt"),
    *("dd", "div", "table", "thead", "tbody", "tr", "th", "td", "code", "pre", "details", "summary", "article"),
    *("figure", "figcaption", "picture", "source", "img", "span"),
}


def test_the_page_loads_nothing_and_text_of_the_run_stays_text(tmp_path: Path) -> None:
    settings = changed("data.source", [HOSTILE])
    settings["model"]["base"] = HOSTILE
    run = write_run(tmp_path / "run", settings, reply=HOSTILE)
    with (run / "run.log").open("a") as log:
        log.write(f"2026-01-02 03:04:07,678 rank 0 WARNING {HOSTILE.splitlines()[0]}\n")
    main(["report", str(run), "--output", str(tmp_path / "out")])
    page = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert page.tags <= OUR_TAGS
    assert page.addresses
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    for address in page.addresses:
        picture = base64.b64decode(address.partition(",")[2]).decode()
        assert not re.search(r"<(script|image|foreignObject)|url\((?!#)|href=\"(?!#)", picture)
    style = page.text[: page.text.index("Training report", page.text.index("body {"))]
    assert not re.search(r"url\(|@import", style)
    seen = HOSTILE.replace("\x1b", "�")
    assert page.text.count(seen) >= 6  # base, source, question or reply, reference, warning
    rendered = Page(markdown_to_safe_html((tmp_path / "out/report.md").read_text(encoding="utf-8")))
    assert rendered.tags <= OUR_TAGS
    assert [address for address in rendered.addresses if not address.endswith(".png") or ":" in address] == []
    assert rendered.text.count(" ↵ ".join(seen.splitlines())) >= 5


@pytest.mark.parametrize(
    "text", ["1.5 → 2", "-4.5", "+3", "torch.optim.AdamW", "0:00:56", "a_b-c", "(so) it is!", "3 > 2", "2026-01-02"]
)
def test_ordinary_text_is_not_escaped(text: str) -> None:
    assert escape_markdown(text) == text


@pytest.mark.parametrize(
    "text", ["1. a", "- b", "+ c", "# d", "> e", "---", "_f_", "*g*", "[h](i)", "~~j~~", "<k>", "==="]
)
def test_what_is_markup_is_escaped(text: str) -> None:
    page = Page(markdown_to_safe_html(escape_markdown(text)))
    assert (page.tags, page.text) == ({"p"}, text)


@pytest.mark.parametrize(
    ("settings", "curves", "finished", "reply", "said"),
    [
        (changed("trainer.limit_val_batches", 0), {"train/loss": {1: 1}}, 2, "a", "trainer.limit_val_batches is 0"),
        (
            changed("data.validation_source", None) | {"data": {"validation_source": None, "validation_share": 0.0}},
            {"train/loss": {1: 1}},
            2,
            "a",
            "data.validation_share is 0.0",
        ),
        (SETTINGS, {"train/loss": {1: 1, 3: 1}}, None, "a", "the run stopped at step 3, before the first validation"),
        (
            changed("trainer.val_check_interval", 900),
            {"train/loss": {7: 1}},
            7,
            "a",
            "has 7 steps, and trainer.val_check",
        ),
        (changed("trainer.logger", False), {}, 2, "a", "There are no curves: trainer.logger is false."),
        (
            changed("trainer.logger", {"class_path": "lightning.pytorch.loggers.CSVLogger"}),
            {},
            2,
            "a",
            "they went to CSVLogger",
        ),
        (SETTINGS, {}, None, "a", "There are no curves: the run stopped before its first entry."),
        (changed("held_out", None), CURVES, 2, None, "There are no sample replies: held_out is null."),
        (SETTINGS, CURVES, None, None, "the run stopped before the first replies"),
        (SETTINGS, CURVES | {"val/replies/chrf": {2: 3.0}}, 2, None, "held_out_replies.jsonl is not in the folder"),
        (
            changed("trainer.num_sanity_val_steps", 2),
            {"val/loss": {2: 1.0, 4: 0.9}},
            4,
            "a",
            "num_sanity_val_steps is 2",
        ),
        (SETTINGS, CURVES, 2, "a", "There is no test loss: fit does not test, and data.test_source is not set."),
        (changed("data.test_source", "demo"), CURVES, 2, "a", "Run kyon-pl test with this run's config.yaml"),
        (SETTINGS, CURVES, 2, "a", "the run used the CPU"),
    ],
)
def test_what_is_missing_has_its_reason(
    settings: dict[str, Any],
    curves: dict[str, dict[int, float]],
    finished: int | None,
    reply: str | None,
    said: str,
    tmp_path: Path,
) -> None:
    (run,) = read_run_folders([write_run(tmp_path / "run", settings, curves, finished, reply)])
    assert said in " ".join(missing(run, words_in("en")))


def test_a_diverged_run_and_names_of_any_form(tmp_path: Path) -> None:
    lost = {"train/loss": {1: 2.0, 2: float("nan")}, "val/loss": {0: 2.5, 2: float("inf")}}
    lost["val/perplexity"] = {0: float("inf"), 2: float("inf")}
    runs = [write_run(tmp_path / name, curves=lost) for name in ("_$\\frac{$", "<b>&[x](y)")]
    main(["report", *map(str, runs), "--output", str(tmp_path / "out")])
    page = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert page.tags <= OUR_TAGS
    assert "Training report: _$\\frac{$ and <b>&[x](y)" in page.text
    assert (tmp_path / "out/loss.png").is_file()


def test_every_text_is_there_in_both_languages() -> None:
    for key, (english, chinese) in MESSAGES.items():
        fields = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (english, chinese)]
        assert fields[0] == fields[1] or key in ("moment",), key
        assert not re.search(r"\b(?!run\b|data\b|held_out)[a-z]+ [a-z]+ [a-z]+\b", re.sub(r"\{.*?\}", "", chinese)), key
    assert get_args(Language) == ("en", "zh")


def test_a_complete_run_has_no_english_sentence_in_chinese(tmp_path: Path) -> None:
    (run,) = read_run_folders([write_run(tmp_path / "run")])
    parts = list(report_parts([run], [], words_in("zh")))
    text = report_markdown.markdown(parts, "问题")
    assert "2026年1月2日 03:04" in text
    for shown in (text, Page(report_html.page(parts, "zh")).text):
        words = re.sub(r"`.*?`|<!--.*?-->", "", shown[shown.index("本次训练") :])
        assert not re.search(r"[A-Za-z]+ [a-z]+ [a-z]+", words), words
