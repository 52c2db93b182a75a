"""`kyon-pl report`: one run, or a comparison of several, as Markdown and pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kyon_pl.errors import SettingError
from kyon_pl.evaluation.held_out import Code, block, escape_markdown, exchange, table
from kyon_pl.evaluation.judged import judged_sections
from kyon_pl.evaluation.report_words import in_words
from kyon_pl.evaluation.run_folder import RunFolder, read_run_folders
from kyon_pl.logs import from_here
from kyon_pl.outputs import Output, check_outputs, is_our_png, output_file, resolve, writing
from kyon_pl.runs.curves import PICTURES, check_matplotlib, draw

log = logging.getLogger(__name__)

REPORT = "report.md"
SHOWN_QUESTIONS = 5
NO_VALUE = "–"
_STATE_COLUMNS = ("run", "state")
_STATES = f"\n\n{table(_STATE_COLUMNS, ())}\n"
_HIDDEN_SETTINGS = (
    *("config", "ckpt_path", "replies.", "trainer.logger", "trainer.callbacks", "trainer.default_root_dir"),
    *("trainer.enable_", "trainer.inference_mode", "trainer.use_distributed_sampler", "trainer.reload_"),
    *("model.lora.loftq_config", "model.lora.megatron", "model.lora.qalora_group", "model.lora.runtime_config"),
)
_RATES = ("train/tokens_per_s", "train/trained_tokens_per_s", "train/rows_per_s", "train/peak_gpu_memory_gib")


def report(runs: list[str], output: str | None = None) -> None:
    """Write a report of a run, or of several compared: metrics, settings, replies, curves.

    The report of a failed or running run shows what exists so far and says that the run has not finished.

    Args:
        runs: run folders, such as lightning_logs/version_0; may be given without `--runs`.
        output: the folder to write to; unset, `report` in the first run folder.

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
    text_output, picture_outputs = outputs_in(folder)
    check_outputs([text_output, *picture_outputs.values()], {})
    pictures = draw({run.name: run.curves for run in folders}, picture_outputs)
    parts = [*summary(folders), *(f"![{picture.stem}]({picture.name})" for picture in pictures), *details(folders)]
    with writing(text_output) as written:
        written.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    for run in folders:
        log.info("%s: %s", run.name, run.state())
    log.info("report: %s and %d pictures written to %s", REPORT, len(pictures), from_here(folder))


def outputs_in(folder: Path) -> tuple[Output, dict[str, Output]]:
    """The files of a report: its text, and the pictures by the keys of `PICTURES`.

    Args:
        folder: of the report; it need not exist.

    Raises:
        SettingError: the folder is a file.
    """
    if folder.is_file():
        raise SettingError("--output", f"{folder} is a file", "Name a folder")
    pictures = {name: output_file("--output", folder / f"{name}.png", _is_our_picture) for name in PICTURES}
    return output_file("--output", folder / REPORT, _is_our_report), pictures


def _is_our_report(path: Path) -> bool:
    return _STATES in path.read_text(encoding="utf-8", errors="replace")


def _is_our_picture(path: Path) -> bool:
    """Whether a picture is ours: by its own mark, or shown by a report of ours (an earlier version set no marks)."""
    report = path.with_name(REPORT)
    shown = report.is_file() and _is_our_report(report) and f"]({path.name})" in report.read_text("utf-8", "replace")
    return is_our_png(path) or shown


def summary(runs: Sequence[RunFolder]) -> Iterator[str]:
    """The title, the state of each run, and the metrics."""
    names = [run.name for run in runs]
    yield f"# {' and '.join(map(escape_markdown, names))}"
    for run in runs:
        yield f"{f'**{escape_markdown(run.name)}**: ' if len(runs) > 1 else ''}{in_words(run)}"
    yield table(_STATE_COLUMNS, [[run.name, run.state()] for run in runs])
    for run in runs:
        if run.missing:
            yield f"Missing in {escape_markdown(run.name)}: {escape_markdown('; '.join(run.missing))}."
    yield "## Metrics: base → tuned"
    rows = [[Code(name), *(_change(run, name) for run in runs)] for name in metric_names(runs)]
    yield table(["", *map(escape_markdown, names)], rows) if rows else "No validation took place."


def details(runs: Sequence[RunFolder]) -> Iterator[str]:
    """The replies and settings; the data, times and warnings of each run."""
    yield from _replies(runs)
    yield from judged_sections(run.folder for run in runs)
    yield from _settings(runs)
    for run in runs:
        lines = run.last_start()
        name = f" of {escape_markdown(run.name)}" if len(runs) > 1 else ""
        if data := [line.text for line in lines if line.text.startswith("data: ")]:
            yield f"## Data{name}\n\n{block(chr(10).join(data))}"
        yield f"## Times{name}\n\n{table(['', ''], _times(run))}"
        if warnings := [f"{line.level}: {line.text}" for line in lines if line.level != "INFO"]:
            yield f"## Warnings and errors{name}\n\n{block(chr(10).join(warnings))}"


def metric_names(runs: Sequence[RunFolder]) -> list[str]:
    """Names of the validation metrics in alphabetical order, `loss` and `perplexity` first, without `base_replies/`."""
    tags = {tag.removeprefix("val/") for run in runs for tag in run.curves if tag.startswith("val/")}
    return sorted((tag for tag in tags if not tag.startswith("base_replies/")), key=lambda tag: (tag.count("/"), tag))


def _number(value: float | None) -> str:
    """Four significant digits."""
    return NO_VALUE if value is None else f"{value:.4g}"


def _change(run: RunFolder, name: str) -> str:
    return " → ".join(map(_number, run.base_and_tuned(name)))


def _replies(runs: Sequence[RunFolder]) -> Iterator[str]:
    shown = next((run.replies for run in runs if run.replies), [])[:SHOWN_QUESTIONS]
    if shown:
        yield "## Replies to held-out questions"
    for row in shown:
        same = [(run, [other for other in run.replies if other["prompt"] == row["prompt"]]) for run in runs]
        yield exchange(row, [(run.name, rows[0]["replies"][-1]) for run, rows in same if rows])


def _settings(runs: Sequence[RunFolder]) -> Iterator[str]:
    """The settings of one run that are not empty, or the settings in which several runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if not key.startswith(_HIDDEN_SETTINGS))
    rows = [[Code(key), *(_setting_text(run.settings.get(key)) for run in runs)] for key in keys]
    if len(runs) == 1:
        yield "## Settings"
        yield table(["setting", "value"], [row for row in rows if row[1] not in (NO_VALUE, "false", "[]", "{}")])
        return
    yield "## Settings that differ"
    different = [row for row in rows if len(set(row[1:])) > 1]
    yield table(["setting", *(escape_markdown(run.name) for run in runs)], different) if different else "None."


def _setting_text(value: Any) -> str:
    if value in (None, ""):
        return NO_VALUE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _times(run: RunFolder) -> Iterator[list[str]]:
    lines = run.last_start()
    if lines:
        yield ["from the last start to the last line", str(lines[-1].time - lines[0].time)]
    for line in lines:
        if line.text.startswith(("estimate: ", "trained to step ")):
            yield [line.text.partition(" ")[0].rstrip(":"), line.text.removeprefix("estimate: ")]
    for tag in _RATES:
        if points := run.curves.get(tag):
            yield [f"{tag}, mean of its entries", _number(sum(value for _, value in points) / len(points))]
