"""The curves of runs: read from TensorBoard's event files, and drawn as pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
    LegacyEventFileLoader,
)
from tensorboard.compat.proto.event_pb2 import SessionLog  # type: ignore[import-untyped]

from kyon_pl.imports import need_package

Curves = Mapping[str, list[tuple[int, float]]]
"""Name, such as `val/loss`, to (optimizer step, value) in the order of steps."""

# picture -> its panels, each with the curves in it; of a curve that is there in no run nothing is drawn
PICTURES: dict[str, dict[str, Sequence[str]]] = {
    "loss": {"loss a token": ("train/loss", "val/loss"), "perplexity": ("val/perplexity",)},
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


def event_files(folder: Path) -> list[Path]:
    """TensorBoard's files of a run folder in the order in which they were begun.

    Their names hold the second, the machine, the process and a number in it. TensorBoard itself has them in the order
    of texts, in which the tenth of a process comes before the second.

    Args:
        folder: where they lie.
    """
    return sorted(folder.glob("events.out.tfevents.*"), key=_numbers_as_numbers)


def _numbers_as_numbers(file: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", file.name)]


def read_curves(folder: Path) -> Curves:
    """All scalars in the event files of a run folder; none if there is no such file.

    What was drawn before a resume from the step of that resume on counts no more; of a step that is drawn twice the
    later value counts.

    Args:
        folder: where the event files lie.
    """
    curves: dict[str, dict[int, float]] = {}
    for event in (event for file in event_files(folder) for event in LegacyEventFileLoader(str(file)).Load()):
        if event.session_log.status == SessionLog.START:
            curves = {tag: {step: curve[step] for step in curve if step < event.step} for tag, curve in curves.items()}
        for value in event.summary.value:
            if value.HasField("simple_value"):
                curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: sorted(curve.items()) for tag, curve in curves.items() if curve}


def check_matplotlib() -> None:
    """Refuse to draw where that cannot be done, before the work begins.

    Raises:
        MachineError: matplotlib is not installed.
    """
    need_package("matplotlib", "report", where="kyon-pl report", does="draws the pictures")


def draw(runs: Mapping[str, Curves], folder: Path) -> list[Path]:
    """Write the pictures that there is something to draw in.

    Args:
        runs: the curves of each run by its name; a colour each.
        folder: where to.

    Returns:
        The files.
    """
    files = []
    for picture, panels in PICTURES.items():
        drawn = {
            title: tags
            for title, tags in panels.items()
            if any(curves.get(t) for t in tags for curves in runs.values())
        }
        if drawn:
            files.append(folder / f"{picture}.png")
            _draw(files[-1], drawn, runs)
    return files


def _draw(file: Path, panels: Mapping[str, Sequence[str]], runs: Mapping[str, Curves]) -> None:
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    rows, columns = -(-len(panels) // _COLUMNS), min(len(panels), _COLUMNS)
    figure = Figure(figsize=(4.5 * columns, 3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, tags) in zip(grid, panels.items(), strict=False):
        for number, (name, curves) in enumerate(runs.items()):
            for tag in tags:
                _draw_curve(axes, tag, curves.get(tag, []), f"C{number}", f"{name} {tag}")
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_xlabel("optimizer step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="x-small", frameon=False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.savefig(file, dpi=120, format="png")


def _draw_curve(axes: object, tag: str, points: list[tuple[int, float]], colour: str, label: str) -> None:
    """The base's value is a line all across; what is trained on is thinner than what is held out."""
    if not points:
        return
    if "base_replies" in tag:
        axes.axhline(points[-1][1], color=colour, linestyle=":", label=label)  # type: ignore[attr-defined]
        return
    width = 0.8 if tag == "train/loss" else 1.6
    steps, values = zip(*points, strict=True)
    marker = "." if len(points) < 30 else ""
    axes.plot(steps, values, color=colour, linewidth=width, marker=marker, label=label)  # type: ignore[attr-defined]
