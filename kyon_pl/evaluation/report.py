"""`kyon-pl report`: a run, or several beside each other, as Markdown and pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kyon_pl.errors import SettingError
from kyon_pl.evaluation.held_out import block, exchange, plain, table
from kyon_pl.evaluation.run_folder import RunFolder, read_run_folders
from kyon_pl.logs import from_here
from kyon_pl.runs.curves import check_matplotlib, draw

log = logging.getLogger(__name__)

REPORT = "report.md"
SAMPLES = 5  # questions whose replies are shown
NOTHING = "–"
_UNIMPORTANT = (
    *("config", "ckpt_path", "replies.", "trainer.logger", "trainer.callbacks", "trainer.default_root_dir"),
    *("trainer.enable_", "trainer.inference_mode", "trainer.use_distributed_sampler", "trainer.reload_"),
    *("model.lora.loftq_config", "model.lora.megatron", "model.lora.qalora_group", "model.lora.runtime_config"),
)
_RATES = ("train/tokens_per_s", "train/trained_tokens_per_s", "train/rows_per_s", "train/peak_gpu_memory_gib")


def report(runs: list[str], output: str | None = None) -> None:
    """Write a report of a run, or of several compared: metrics, settings, replies, curves.

    A run that failed or goes on still has what is there in it, and its report says so.

    Args:
        runs: run folders, such as lightning_logs/version_0; the options may leave out this name.
        output: the folder to write into; unset, `report` in the first run folder.

    Raises:
        MissingFileError: a folder without a run in it.
        SettingError: no run, or one twice.
        MachineError: matplotlib is not installed.
    """
    if not runs or len({Path(run).absolute() for run in runs}) < len(runs):
        raise SettingError("kyon-pl report", f"{len(runs)} runs, each once", "Name one run folder or more.")
    check_matplotlib()
    found = read_run_folders([Path(run) for run in runs])
    folder = Path(output) if output else found[0].folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw({run.name: run.curves for run in found}, folder)
    parts = [*summary(found), *(f"![{picture.stem}]({picture.name})" for picture in pictures), *details(found)]
    (folder / REPORT).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    for run in found:
        log.info("%s: %s", run.name, run.state())
    log.info("report: %s and %d pictures written to %s", REPORT, len(pictures), from_here(folder))


def summary(runs: Sequence[RunFolder]) -> Iterator[str]:
    """What came out, for people in a hurry."""
    names = [run.name for run in runs]
    yield f"# {' and '.join(map(plain, names))}"
    yield table(["run", "state"], [[run.name, run.state()] for run in runs])
    for run in runs:
        if run.missing:
            yield f"Missing in {plain(run.name)}: {plain('; '.join(run.missing))}."
    yield "## Metrics: base → tuned"
    rows = [[name, *(_change(run, name) for run in runs)] for name in metric_names(runs)]
    yield table(["", *map(plain, names)], rows) if rows else "None was validated."


def details(runs: Sequence[RunFolder]) -> Iterator[str]:
    """Replies, settings, data, times."""
    yield from _samples(runs)
    yield from _settings(runs)
    for run in runs:
        lines = run.last_start()
        name = f" of {plain(run.name)}" if len(runs) > 1 else ""
        if data := [line.text for line in lines if line.text.startswith("data: ")]:
            yield f"## Data{name}\n\n{block(chr(10).join(data))}"
        yield f"## Times{name}\n\n{table(['', ''], _times(run))}"
        if said := [f"{line.level}: {line.text}" for line in lines if line.level != "INFO"]:
            yield f"## Warnings and errors{name}\n\n{block(chr(10).join(said))}"


def metric_names(runs: Sequence[RunFolder]) -> list[str]:
    """Those of validation, in alphabetical order, `loss` and `perplexity` first; the base's own are beside them."""
    tags = {tag.removeprefix("val/") for run in runs for tag in run.curves if tag.startswith("val/")}
    return sorted((tag for tag in tags if not tag.startswith("base_replies/")), key=lambda tag: (tag.count("/"), tag))


def before_and_after(run: RunFolder, name: str) -> tuple[float | None, float | None]:
    """A metric of the base and of the newest step; of the loss, the base's is that before the first step."""
    points = run.curves.get(f"val/{name}", [])
    own = run.curves.get(f"val/{name.replace('replies/', 'base_replies/')}", []) if "replies/" in name else points[:1]
    base = own[0][1] if own and own[0][0] == 0 else None
    return base, points[-1][1] if points else None


def number(value: float | None) -> str:
    """Four significant digits."""
    return NOTHING if value is None else f"{value:.4g}"


def _change(run: RunFolder, name: str) -> str:
    base, tuned = before_and_after(run, name)
    return f"{number(base)} → {number(tuned)}"


def _samples(runs: Sequence[RunFolder]) -> Iterator[str]:
    asked = next((run.replies for run in runs if run.replies), [])[:SAMPLES]
    if asked:
        yield "## Replies to held-out questions"
    for row in asked:
        same = [(run, [other for other in run.replies if other["prompt"] == row["prompt"]]) for run in runs]
        yield exchange(row, [(run.name, rows[0]["replies"][-1]) for run, rows in same if rows])


def _settings(runs: Sequence[RunFolder]) -> Iterator[str]:
    """Of one run those that say something, of several those that differ."""
    keys = [
        key for key in dict.fromkeys(key for run in runs for key in run.settings) if not key.startswith(_UNIMPORTANT)
    ]
    rows = [[key, *(_said(run.settings.get(key)) for run in runs)] for key in keys]
    if len(runs) == 1:
        yield "## Settings"
        yield table(["setting", "value"], [row for row in rows if row[1] not in (NOTHING, "false", "[]", "{}")])
        return
    yield "## Settings that differ"
    different = [row for row in rows if len(set(row[1:])) > 1]
    yield table(["setting", *(plain(run.name) for run in runs)], different) if different else "None."


def _said(value: Any) -> str:
    return (
        NOTHING if value in (None, "") else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )


def _times(run: RunFolder) -> Iterator[list[str]]:
    lines = run.last_start()
    if lines:
        yield ["from the last start to the last line", str(lines[-1].time - lines[0].time)]
    for line in lines:
        if line.text.startswith(("estimate: ", "trained to step ")):
            yield [line.text.partition(" ")[0].rstrip(":"), line.text.removeprefix("estimate: ")]
    for tag in _RATES:
        if points := run.curves.get(tag):
            yield [f"{tag}, mean of its entries", number(sum(value for _, value in points) / len(points))]
