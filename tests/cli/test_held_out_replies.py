"""Replies to held-out questions while training: what is logged of them, and that nothing else changes."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from reply_runs import curves, events
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from kyon_pl import ChatGLMTokenizer, DialogueDataModule
from kyon_pl.cli import main
from kyon_pl.data.prompt import render
from kyon_pl.demo import ASSETS, BASE
from kyon_pl.evaluation.held_out import block, escape_markdown, table
from kyon_pl.evaluation.metrics import JudgedReply, ReplyMetrics


def texts(run: Path, tag: str) -> dict[int, str]:
    return {
        event.step: event.tensor_proto.string_val[0].decode() for event in events(run).Tensors(f"{tag}/text_summary")
    }


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "held_out_replies.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_replies_change_nothing_that_is_trained(runs: dict[str, Path]) -> None:
    """To the last bit, dropout included."""
    on, off = (torch.load(runs[name] / "checkpoints/step=4.ckpt", weights_only=True) for name in ("on", "off"))
    assert on["state_dict"].keys() == off["state_dict"].keys()
    assert all(torch.equal(on["state_dict"][name], off["state_dict"][name]) for name in on["state_dict"])
    with_replies, without = curves(runs["on"]), curves(runs["off"])
    replies = {name for name in with_replies if "replies/" in name}
    assert {name: curve for name, curve in with_replies.items() if name not in replies} == without
    assert not (runs["off"] / "held_out_replies.jsonl").exists()


def test_curves_and_history_have_no_seam(runs: dict[str, Path]) -> None:
    assert curves(runs["resumed"]) == curves(runs["on"])
    assert rows_of(runs["resumed"]) == rows_of(runs["on"])
    for place in (1, 2, 3):
        assert texts(runs["resumed"], f"replies/{place}") == texts(runs["on"], f"replies/{place}")


def test_metrics_are_those_of_the_replies(runs: dict[str, Path]) -> None:
    drawn, rows = curves(runs["on"]), rows_of(runs["on"])
    assert [len(row["replies"]) for row in rows] == [3, 3, 3]
    data = {row["row"]: row for row in rows}
    assert len(data) == 3
    assert any(row["replies"][2]["reply"] != row["base"] for row in rows)
    for turn, step in enumerate((0, 2, 4)):
        metrics = ReplyMetrics()
        metrics.update([judged(row, **row["replies"][turn]) for row in rows])
        for name, value in metrics.compute().items():
            assert dict(drawn[f"val/replies/{name}"])[step] == pytest.approx(value, rel=1e-5), name
    metrics = ReplyMetrics()
    metrics.update([judged(row, row["base"]) for row in rows])
    of_base = pytest.approx(metrics.compute()["chrf"], rel=1e-5)
    assert drawn["val/base_replies/chrf"] == [(step, of_base) for step in (0, 2, 4)]
    assert drawn["val/replies/chrf"][0] == drawn["val/base_replies/chrf"][0]  # an adapter begins as none


def judged(row: dict[str, Any], reply: str, stopped: bool = True, step: int = 0) -> JudgedReply:
    return JudgedReply(reply, row["reference"], tuple(row["prompt"].split("###")[1:-1]), stopped)


class Html(HTMLParser):
    """Tags, and the text of each table cell."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells:
            self.cells[-1] += data.strip("\n")


def test_a_question_reads_from_top_to_bottom(runs: dict[str, Path]) -> None:
    shown, rows = texts(runs["on"], "replies/2"), rows_of(runs["on"])
    assert list(shown) == [0, 2, 4]
    html, row = Html(markdown_to_safe_html(shown[4])), rows[1]
    ends = ["" if reply["stopped"] else " […]" for reply in row["replies"]]
    said = [reply["reply"] + end for reply, end in zip(row["replies"], ends, strict=True)]
    column = ["reference", row["reference"], "base", row["base"]]
    column += [text for step, reply in zip((0, 2, 4), said, strict=True) for text in (f"step {step}", reply)]
    assert html.cells[2:] == column
    assert row["prompt"].rpartition("###")[2] in html.text


def test_text_of_the_data_is_never_rendered() -> None:
    """By TensorBoard's own converter."""
    evil = "<b>a</b> | **b** ![c](http://d) `e` [f](g) \\ &lt; $h$ # i\n\n- j\u2028_k_ \x1b[31m ~~l~~ http://m.n ```"
    html = Html(markdown_to_safe_html(table(["", "reply"], [["base", evil], [evil, "x"]])))
    assert html.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    seen = " ↵ ".join(evil.splitlines()).replace("\x1b", "�")
    assert html.cells[2:] == ["base", seen, seen, "x"]
    assert Html(markdown_to_safe_html(escape_markdown(evil))).text == seen
    lines = "```\n</code><b>x</b>\n\n**y**\n```"
    html = Html(markdown_to_safe_html(block(lines)))
    assert html.tags == {"pre", "code"}
    assert html.text.rstrip() == lines
    assert "b" in Html(markdown_to_safe_html(evil)).tags | Html("<b>").tags  # the control
    assert "strong" in Html(markdown_to_safe_html(evil)).tags


def test_what_is_trained_is_shown_at_step_0(runs: dict[str, Path]) -> None:
    (step, text), *others = texts(runs["resumed"], "what is trained").items()
    assert (step, others) == (0, [])
    shown = Html(markdown_to_safe_html(text)).text
    assert shown.count("── pack 1, row ") == 3
    assert shown.count("⟦") == shown.count("⟧") == 3
    assert "</s>" in shown


def test_hparams_are_a_dozen_settings_and_the_real_curves(runs: dict[str, Path]) -> None:
    written = events(runs["on"])
    plugin = written.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    started = HParamsPluginData.FromString(plugin).session_start_info.hparams
    assert started["rank"].number_value == 16
    assert started["learning rate"].number_value == 0.03
    assert (started["steps"].number_value, started["epochs"].number_value) == (4, 2)  # of two steps
    assert 1500 < started["tokens a step"].number_value <= 2048  # two packs of 1,024
    assert started["quantization"].string_value == "none"  # a column of one run is a column of all
    assert [max(dict(curves(runs["on"])[name])) for name in ("val/loss", "train/loss")] == [4, 4]  # the last step
    assert started["batching"].string_value == "packed"
    assert 8 <= len(started) <= 14
    plugin = written.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = {info.name.tag for info in HParamsPluginData.FromString(plugin).experiment.metric_infos}
    drawn = curves(runs["on"])
    assert {"val/loss", "val/best_loss", "val/replies/chrf"} <= metrics <= drawn.keys()
    losses = [value for step, value in drawn["val/loss"] if step]
    assert [value for _, value in drawn["val/best_loss"]] == [min(losses[: n + 1]) for n in range(len(losses))]
    assert [tag for tag, points in drawn.items() if len(points) == 1] == []


def test_what_is_drawn_together_is_drawn(runs: dict[str, Path]) -> None:
    """In the order of reading, and no chart is empty: there is no GPU here, and one run has no replies."""
    for name, titles in (("on", ["1", "2", "3"]), ("off", ["1", "3"])):
        (written,) = events(runs[name]).Tensors("custom_scalars__config__")
        categories = Layout.FromString(written.tensor_proto.string_val[0]).category
        assert [category.title[0] for category in categories] == titles
        charts = [[*chart.multiline.tag] for category in categories for chart in category.chart]
        assert charts[0] == ["val/loss", "train/loss"]
        drawn = events(runs[name]).Tags()["scalars"]
        assert all({*tags} <= {*drawn} for tags in charts)


def test_one_prompt_has_the_same_ids_everywhere(runs: dict[str, Path], tmp_path: Path) -> None:
    """In fit, validate and predict, for the replies, and with the tokenizer of the exported adapter."""
    row = json.loads((ASSETS / "validation.jsonl").read_text(encoding="utf-8").splitlines()[5])
    (tmp_path / "row.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    rows = str(tmp_path / "row.jsonl")
    data = DialogueDataModule(rows, validation_source=rows, tokenizer=str(BASE), workers=0, processes=1)
    data.prepare_data()
    data.setup()
    exported = ChatGLMTokenizer.from_pretrained(runs["on"] / "checkpoints/step=4")
    expected = exported.encode(render(row["context"])[0].text)
    (packed,), (padded,), (prompts,) = data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()
    for batch in (packed, padded):
        first = int(batch.trained_positions[0]) + 1
        assert batch.input_ids.flatten()[:first].tolist() == expected
    assert prompts.input_ids == data.held_out_prompts("validation", 8, one_a_question=True).input_ids == [expected]


def test_validate_compares_with_the_base(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the rows that it is told; one question more than once, if rows have it."""
    monkeypatch.chdir(tmp_path)
    words = ["--config", str(runs["on"] / "config.yaml"), "--ckpt_path", str(runs["on"] / "checkpoints/step=4.ckpt")]
    main(["validate", *words, "--held_out.validate_rows", "5"])
    run = tmp_path / "lightning_logs/version_0"
    rows, drawn = rows_of(run), curves(run)
    assert [row["row"] for row in rows] == [0, 18, 36, 55, 73]  # of 92
    followed = {row["prompt"]: row for row in rows_of(runs["on"])}
    both = [row for row in rows if row["prompt"] in followed]
    assert both[0]["row"] == 0
    for row in both:
        assert row["base"] == followed[row["prompt"]]["base"]
        assert row["replies"][0]["reply"] == followed[row["prompt"]]["replies"][-1]["reply"]
    metrics = ReplyMetrics()
    metrics.update([judged(row, row["base"]) for row in rows])
    assert drawn["val/base_replies/chrf"][0][1] == pytest.approx(metrics.compute()["chrf"], rel=1e-5)
    assert "val/replies/chrf" in capsys.readouterr().out
