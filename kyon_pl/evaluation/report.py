"""`kyon-pl report`: one run, or a comparison of several, as Markdown with pictures and as one HTML file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kyon_pl.errors import SettingError
from kyon_pl.evaluation import report_html, report_markdown
from kyon_pl.evaluation.held_out import ended, question
from kyon_pl.evaluation.parts import Bullets, Exchange, Figure, Heading, Paragraph, Part
from kyon_pl.evaluation.pictures import PICTURES, check_matplotlib, draw, has_chinese_font
from kyon_pl.evaluation.report_judged import judged
from kyon_pl.evaluation.report_messages import Language, Words, words_in
from kyon_pl.evaluation.report_missing import missing
from kyon_pl.evaluation.report_tables import data, facts, metrics, settings, times, warnings
from kyon_pl.evaluation.report_words import in_words, notes, short_state
from kyon_pl.evaluation.run_folder import RunFolder, read_run_folders
from kyon_pl.logs import from_here
from kyon_pl.outputs import Output, check_outputs, is_our_png, output_file, resolve, writing

log = logging.getLogger(__name__)

REPORT, PAGE = "report.md", "report.html"
SHOWN_QUESTIONS = 5
_OLD_MARK = "| run | state |\n| --- | --- |\n"  # of reports of earlier versions


def report(runs: list[str], output: str | None = None, language: Language = "en") -> None:
    """Write a report of a run, or of several compared: metrics, settings, replies, curves.

    It is written as report.md with pictures, and as report.html, one file to send to somebody. The report of a failed
    or running run shows what exists so far and says what is missing, and why.

    Args:
        runs: run folders, such as lightning_logs/version_0; may be given without `--runs`.
        output: the folder to write to; unset, `report` in the first run folder.
        language: en or zh, of the words of the report.

    Raises:
        MissingFileError: a folder that contains no run.
        SettingError: no run, the same run twice, or a file of the report exists and is not ours.
        MachineError: matplotlib is not installed, or the folder cannot be written.
    """
    if not runs or len({Path(run).absolute() for run in runs}) < len(runs):
        raise SettingError("kyon-pl report", f"{len(runs)} runs", "Name one or more run folders, each once.")
    check_matplotlib()
    folders = read_run_folders([Path(run) for run in runs])
    folder = resolve("--output", output or folders[0].folder / "report")
    outputs = outputs_in(folder)
    check_outputs(outputs.all(), {})
    words = words_in(language)
    curves = {run.name: run.curves for run in folders}
    figures = draw(curves, outputs.pictures, words, words if has_chinese_font() else words_in("en"))
    parts = list(report_parts(folders, figures, words))
    for file, text in (
        (outputs.markdown, report_markdown.markdown(parts, words["question"])),
        (outputs.page, report_html.page(parts, language)),
    ):
        with writing(file) as written:
            written.write_text(text, encoding="utf-8")
    if language == "zh" and figures and not has_chinese_font():
        log.warning("matplotlib finds no font for Chinese: the titles in the PNG files are English; %s has none", PAGE)
    for run in folders:
        log.info("%s: %s", run.name, short_state(run, words_in("en")))
    log.info("report: %s, %s and %d pictures written to %s", REPORT, PAGE, len(figures), from_here(folder))


@dataclass(frozen=True)
class Outputs:
    """The files of a report: Markdown, HTML, and the pictures by the keys of `PICTURES`."""

    markdown: Output
    page: Output
    pictures: dict[str, Output]

    def all(self) -> list[Output]:
        """All of them."""
        return [self.markdown, self.page, *self.pictures.values()]


def outputs_in(folder: Path) -> Outputs:
    """The files of a report.

    Args:
        folder: of the report; it need not exist.

    Raises:
        SettingError: the folder is a file.
    """
    if folder.is_file():
        raise SettingError("--output", f"{folder} is a file", "Name a folder")
    return Outputs(
        output_file("--output", folder / REPORT, _is_our_report),
        output_file("--output", folder / PAGE, _is_our_page),
        {name: output_file("--output", folder / f"{name}.png", _is_our_picture) for name in PICTURES},
    )


def _is_our_report(path: Path) -> bool:
    text = path.read_text(encoding="utf-8", errors="replace")
    return text.endswith(f"{report_markdown.MARK}\n") or _OLD_MARK in text


def _is_our_page(path: Path) -> bool:
    return report_html.MARK in path.read_text(encoding="utf-8", errors="replace")


def _is_our_picture(path: Path) -> bool:
    """Whether a picture is ours: by its own mark, or shown by a report of ours (an earlier version set no marks)."""
    report = path.with_name(REPORT)
    shown = report.is_file() and _is_our_report(report) and f"]({path.name})" in report.read_text("utf-8", "replace")
    return is_our_png(path) or shown


def report_parts(runs: Sequence[RunFolder], figures: Sequence[Figure], words: Words) -> Iterator[Part]:
    """All parts, in the order of reading.

    Args:
        runs: one or more.
        figures: their curves.
        words: of the report.
    """
    yield Heading(words["title"].format(runs=words["and"].join(run.name for run in runs)), level=1)
    yield from _first(runs, words)
    yield from _replies(runs, words)
    for run in runs:
        yield from judged(run, words, _of_run(run, runs, words))
    yield from figures
    yield from metrics(runs, words)
    for run in runs:
        of_run = _of_run(run, runs, words)
        if reasons := list(missing(run, words)):
            yield Heading(words["missing"] + of_run)
            yield Bullets(reasons)
    for run in runs:
        of_run = _of_run(run, runs, words)
        yield from data(run, words, of_run)
        yield from times(run, words, of_run)
        yield from warnings(run, words, of_run)
    yield from settings(runs, words)


def _first(runs: Sequence[RunFolder], words: Words) -> Iterator[Part]:
    """Each run in words, the facts, and what to note."""
    for run in runs:
        if len(runs) > 1:
            yield Heading(run.name)
        yield Paragraph(in_words(run, words))
    yield facts(runs, words)
    for run in runs:
        if noted := list(notes(run, words)):
            yield Heading(words["notes"] + _of_run(run, runs, words))
            yield Bullets(noted)


def _of_run(run: RunFolder, runs: Sequence[RunFolder], words: Words) -> str:
    """The end of a heading: of which run it is, if there are several."""
    return words["of_run"].format(run=run.name) if len(runs) > 1 else ""


def _replies(runs: Sequence[RunFolder], words: Words) -> Iterator[Part]:
    """A few questions, with the replies of the base and of each run side by side."""
    shown = next((run.replies for run in runs if run.replies), [])[:SHOWN_QUESTIONS]
    if shown:
        yield Heading(words["replies"])
    for row in shown:
        same = [(run, [other for other in run.replies if other["prompt"] == row["prompt"]]) for run in runs]
        base = [(words["base"], row["base"])] if row["base"] is not None else []
        names = [words["tuned"] if len(runs) == 1 else run.name for run, _ in same]
        tuned = [(name, ended(rows[0]["replies"][-1])) for name, (_, rows) in zip(names, same, strict=True) if rows]
        yield Exchange(question(row), [*base, *tuned], (words["reference"], row["reference"]))
