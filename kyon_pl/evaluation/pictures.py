"""The curves of runs as pictures: PNG files with all panels, and an SVG for each panel."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kyon_pl.evaluation.parts import Figure, Legend, Panel
from kyon_pl.evaluation.report_messages import Words
from kyon_pl.imports import need_package
from kyon_pl.outputs import PNG_METADATA, Output, writing
from kyon_pl.runs.curves import Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, LINE, QUIET = ("#1f2328", "#e6edf3"), ("#c4cad1", "#3d444d"), ("#848d97", "#8b949e")  # on light, on dark
PALETTE = (
    *(("#0969da", "#58a6ff"), ("#bc4c00", "#f0883e"), ("#1a7f37", "#3fb950"), ("#8250df", "#bc8cff")),
    *(("#bf3989", "#f778ba"), ("#7d4e00", "#d29922"), ("#0f7b7b", "#39c5cf"), ("#a40e26", "#ff7b72")),
)
CHINESE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "PingFang SC"),
    *("Microsoft YaHei", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "SimHei"),
)
_FEW_POINTS = 30  # are marked
_COLUMNS = 3


@dataclass(frozen=True)
class Chart:
    """What a panel shows.

    Attributes:
        title: key of its title in `MESSAGES`, or the title.
        tags: its curves; those without values in any run are omitted.
        low: lower end of the vertical axis; None: from the values.
        high: upper end.
        log: whether the vertical axis is logarithmic.
    """

    title: str
    tags: tuple[str, ...]
    low: float | None = 0.0
    high: float | None = None
    log: bool = False


def _score(name: str, title: str, high: float | None) -> Chart:
    return Chart(title, (f"val/replies/{name}", f"val/base_replies/{name}"), high=high)


PICTURES: dict[str, tuple[str, Sequence[Chart]]] = {
    "loss": (
        "loss",
        [
            Chart("panel_loss", ("train/loss", "val/loss")),
            Chart("panel_perplexity", ("val/perplexity",), low=None, log=True),
        ],
    ),
    "replies": (
        "scores",
        [
            *(_score(name, title, 100) for name, title in (("chrf", "chrF"), ("bleu", "BLEU"), ("rouge_l", "ROUGE-L"))),
            *(_score(name, f"panel_{name}", 1) for name in ("stop_rate", "opens_with_name")),
            _score("length_ratio", "panel_length_ratio", None),
            *(_score(name, f"panel_{name}", 1) for name in ("distinct_2", "repeated_4grams", "copied_share")),
        ],
    ),
    "training": (
        "training",
        [
            Chart("panel_learning_rate", ("train/learning_rate",)),
            Chart("panel_grad_norm", ("train/grad_norm",)),
            Chart("panel_tokens", ("train/tokens_per_s",)),
            Chart("panel_padding", ("train/padding_share",)),
            Chart("panel_memory", ("train/peak_gpu_memory_gib",)),
        ],
    ),
}
"""The pictures by the names of their files: key of the title, and charts."""


@dataclass(frozen=True)
class Curve:
    """A line of a chart: its points, its legend, and how it is drawn."""

    points: Sequence[tuple[int, float]]
    legend: Legend
    alpha: float


def check_matplotlib() -> None:
    """Check that pictures can be drawn, before the work begins.

    Raises:
        MachineError: matplotlib is not installed.
    """
    need_package("matplotlib", "report", where="kyon-pl report", does="draws the pictures")


def draw(runs: Mapping[str, Curves], outputs: Mapping[str, Output], words: Words, words_in_png: Words) -> list[Figure]:
    """Draw the pictures that have at least one curve, and write them as PNG.

    Args:
        runs: curves by the name of the run; each run has its own colour.
        outputs: the PNG files, by the keys of `PICTURES`.
        words: of the titles.
        words_in_png: of the PNG files, which need a font for them.

    Raises:
        KyonError: as `kyon_pl.outputs.writing`.
    """
    from matplotlib import rc_context

    figures = []
    for name, (title, charts) in PICTURES.items():
        charts = [chart for chart in charts if any(curves.get(tag) for tag in chart.tags for curves in runs.values())]
        drawn = {chart: list(_curves(runs, chart, words)) for chart in charts}
        if drawn:
            # words stay text in SVG, and dollars in the name of a run stay dollars
            with rc_context({"svg.fonttype": "none", "svg.hashsalt": "kyon_pl", "text.parse_math": False}):
                with writing(outputs[name]) as file:
                    in_png = {chart: list(_curves(runs, chart, words_in_png)) for chart in charts}
                    _draw_png(file, in_png, words_in_png)
                panels = [_panel(chart, curves, words) for chart, curves in drawn.items()]
            legend = _legend(drawn.values())
            figures.append(Figure(name, words[title], panels, legend, words["axis"]))
    return figures


def has_chinese_font() -> bool:
    """Whether matplotlib has a font with Chinese characters."""
    return _chinese_font() is not None


def _chinese_font() -> str | None:
    from matplotlib import font_manager

    installed = {*font_manager.get_font_names()}
    return next((font for font in CHINESE_FONTS if font in installed), None)


def _curves(runs: Mapping[str, Curves], chart: Chart, words: Words) -> Iterator[Curve]:
    """The lines of a chart: the base and the training loss are quieter than the validation."""
    for number, (run, curves) in enumerate(runs.items()):
        own = PALETTE[number % len(PALETTE)]
        for tag in chart.tags:
            if not (points := curves.get(tag)):
                continue
            is_base, is_training = "base_replies" in tag, tag == "train/loss"
            kind = _kind(tag, words)
            name = kind if len(runs) == 1 else " ".join(filter(None, (run, kind)))
            quiet = len(runs) == 1 and (is_base or is_training)
            colours = QUIET if quiet else own
            style: Literal["solid", "dotted"] = "dotted" if is_base else "solid"
            legend = Legend(name, *colours, style, width=1.0 if is_training else 1.8)
            yield Curve(points, legend, 0.6 if is_training and not quiet else 1.0)


def _kind(tag: str, words: Words) -> str:
    """Which of the curves of a run it is; empty where there is only one."""
    if tag in ("val/loss", "val/perplexity"):
        return words["validation_line"]
    if tag.startswith("val/"):
        return words["base" if "base_replies" in tag else "tuned"]
    return words["training_line"] if tag == "train/loss" else ""


def _legend(charts: Iterable[Sequence[Curve]]) -> list[Legend]:
    legends = dict.fromkeys(curve.legend for curves in charts for curve in curves)
    return [legend for legend in legends if legend.label]


def _draw_png(file: Path, charts: Mapping[Chart, Sequence[Curve]], words: Words) -> None:
    from matplotlib.figure import Figure as Canvas  # pyplot would open windows and keep state
    from matplotlib.lines import Line2D

    rows, columns = -(-len(charts) // _COLUMNS), min(len(charts), _COLUMNS)
    if len(charts) == 4:
        rows, columns = 2, 2
    canvas = Canvas(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    grid = canvas.subplots(rows, columns, squeeze=False).flatten()
    font = _chinese_font() or "DejaVu Sans"
    for axes, (chart, curves) in zip(grid, charts.items(), strict=False):
        _draw_chart(axes, chart, curves)
        axes.set_title(words.get(chart.title, chart.title), loc="left", fontsize="medium", fontfamily=font)
        axes.set_xlabel(words["axis"], fontsize="small", color=QUIET[0], fontfamily=font)
    for axes in grid[len(charts) :]:
        axes.set_visible(False)
    if legends := _legend(charts.values()):
        lines = [Line2D([], [], color=entry.light, linestyle=entry.style, linewidth=entry.width) for entry in legends]
        labels = [entry.label for entry in legends]
        canvas.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False, prop={"family": font})
    canvas.savefig(file, dpi=110, format="png", metadata=PNG_METADATA)


def _panel(chart: Chart, curves: Sequence[Curve], words: Words) -> Panel:
    """The chart as SVG, with digits as its only text: a page has its own fonts for the words."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(4, 2.4), layout="constrained", facecolor="none")
    axes = canvas.subplots()
    axes.set_facecolor("none")
    _draw_chart(axes, chart, curves)
    stream = io.BytesIO()
    canvas.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    light = stream.getvalue()
    dark = light
    for one, other in (INK, LINE, QUIET, *PALETTE):
        dark = dark.replace(one.encode(), other.encode())
    return Panel(words.get(chart.title, chart.title), light, dark)


def _draw_chart(axes: Axes, chart: Chart, curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    for curve in curves:
        steps, values = zip(*curve.points, strict=True)
        marker = "." if len(steps) < _FEW_POINTS and curve.legend.style == "solid" else ""
        (line,) = axes.plot(steps, values, linestyle=curve.legend.style, marker=marker)
        line.set(color=curve.legend.light, linewidth=curve.legend.width, alpha=curve.alpha)
    if chart.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        top = max((value for curve in curves for _, value in curve.points if math.isfinite(value)), default=0.0)
        high = chart.high if chart.high and top <= chart.high else None if top > 0 else 1.0
        axes.set_ylim(chart.low, high and high * 1.03)  # room for a line at the end
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(color=LINE[0], linewidth=0.5, alpha=0.6)
    axes.tick_params(colors=QUIET[0], labelcolor=INK[0], labelsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(LINE[0])
