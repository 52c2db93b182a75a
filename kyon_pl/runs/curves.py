"""Curves of runs, read from TensorBoard's event files and drawn as PNG files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
    LegacyEventFileLoader,
)
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

from kyon_pl.errors import CheckpointError
from kyon_pl.imports import need_package
from kyon_pl.outputs import PNG_METADATA, Output, writing

Curves = Mapping[str, list[tuple[int, float]]]
"""Maps tags, such as `val/loss`, to (optimizer step, value), ordered by step."""

# picture -> panels -> tags; tags without values in any run are omitted
PICTURES: dict[str, dict[str, Sequence[str]]] = {
    "loss": {"loss per token": ("train/loss", "val/loss"), "perplexity": ("val/perplexity",)},
    "replies": {
        name: (f"val/replies/{name}", f"val/base_replies/{name}")
        for name in (
            *("chrf", "bleu", "rouge_l", "stop_rate", "opens_with_name", "length_ratio"),
            *("distinct_2", "repeated_4grams", "copied_share"),
        )
    },
    "training": {
        "learning rate": ("train/learning_rate",),
        "gradient norm": ("train/grad_norm",),
        "tokens/s": ("train/tokens_per_s",),
        "padding": ("train/padding_share",),
        "peak GPU memory, GiB": ("train/peak_gpu_memory_gib",),
    },
}
_COLUMNS = 3
_LOG_SCALE = frozenset(("perplexity",))


def event_files(folder: Path) -> list[Path]:
    """TensorBoard's event files of a run folder, in the order of their creation.

    Names contain time in seconds, host, process id and a counter. TensorBoard orders them as strings, which puts the
    tenth file of a process before the second.

    Args:
        folder: folder with the event files.
    """
    return sorted((file for file in folder.glob("events.out.tfevents.*") if file.is_file()), key=_numbers_as_numbers)


def _numbers_as_numbers(file: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", file.name)]


def read_curves(folder: Path) -> Curves:
    """Read all scalars from the event files of a run folder.

    A resumed run replaces the points from its first step on; of two values of a step, the later one counts.

    Args:
        folder: folder with the event files; without any, the result is empty.

    Raises:
        CheckpointError: a file cannot be read.
    """
    curves: dict[str, dict[int, float]] = {}
    for event in (event for file in event_files(folder) for event in _events(file)):
        if event.session_log.status == SessionLog.START:
            curves = {tag: {step: curve[step] for step in curve if step < event.step} for tag, curve in curves.items()}
        for value in event.summary.value:
            if value.HasField("simple_value"):
                curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: sorted(curve.items()) for tag, curve in curves.items() if curve}


def _events(file: Path) -> Iterator[Event]:
    """The events of a file, up to the first one that is cut short or altered."""
    try:
        yield from LegacyEventFileLoader(str(file)).Load()
    except (OSError, DecodeError) as error:
        found = f"it cannot be read ({error.strerror if isinstance(error, OSError) else error})"
        raise CheckpointError(str(file), found, "Copy it again, or move it out of the run folder") from error


def check_matplotlib() -> None:
    """Check that pictures can be drawn, before the work begins.

    Raises:
        MachineError: matplotlib is not installed.
    """
    need_package("matplotlib", "report", where="kyon-pl report", does="draws the pictures")


def draw(runs: Mapping[str, Curves], pictures: Mapping[str, Output]) -> list[Path]:
    """Draw the pictures that have at least one curve.

    Args:
        runs: curves by the name of the run; each run has its own colour.
        pictures: the PNG files, by the keys of `PICTURES`.

    Returns:
        The written files.

    Raises:
        KyonError: as `kyon_pl.outputs.writing`.
    """
    files = []
    for picture, panels in PICTURES.items():
        drawn = {
            title: tags
            for title, tags in panels.items()
            if any(curves.get(t) for t in tags for curves in runs.values())
        }
        if drawn:
            with writing(pictures[picture]) as file:
                _draw(file, drawn, runs)
            files.append(pictures[picture].path)
    return files


def _draw(file: Path, panels: Mapping[str, Sequence[str]], runs: Mapping[str, Curves]) -> None:
    from matplotlib.figure import Figure  # pyplot would open windows and keep state

    rows, columns = -(-len(panels) // _COLUMNS), min(len(panels), _COLUMNS)
    figure = Figure(figsize=(4.5 * columns, 3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, tags) in zip(grid, panels.items(), strict=False):
        for number, (name, curves) in enumerate(runs.items()):
            for tag in tags:
                _draw_curve(axes, tag, curves.get(tag, []), f"C{number}", _label(name, tag, len(runs)))
        if title in _LOG_SCALE:
            axes.set_yscale("log")
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_xlabel("optimizer step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    lines = {line.get_label(): line for axes in grid for line in axes.get_lines()}  # one legend for all panels
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    figure.savefig(file, dpi=120, format="png", metadata=PNG_METADATA)


def _label(run: str, tag: str, runs: int) -> str:
    """The run, and which of a panel's curves it is; panels without a choice have one label."""
    kind = {"train/loss": "training", "val/loss": "validation"}.get(tag, "")
    if "base_replies" in tag:
        kind = "base"
    elif "replies" in tag and runs == 1:
        kind = "tuned"
    return " ".join(word for word in (run, kind) if word)


def _draw_curve(axes: object, tag: str, points: list[tuple[int, float]], colour: str, label: str) -> None:
    """Draw values of the base as a horizontal line, and the training loss thinner than validation metrics."""
    if not points:
        return
    if "base_replies" in tag:
        axes.axhline(points[-1][1], color=colour, linestyle=":", label=label)  # type: ignore[attr-defined]
        return
    width = 0.8 if tag == "train/loss" else 1.6
    steps, values = zip(*points, strict=True)
    marker = "." if len(points) < 30 else ""
    axes.plot(steps, values, color=colour, linewidth=width, marker=marker, label=label)  # type: ignore[attr-defined]
