"""Histograms of row lengths, as bars in the terminal and as a PNG."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kyon_pl.errors import MissingFileError
from kyon_pl.imports import need_package
from kyon_pl.outputs import PNG_METADATA, Output, is_our_png, output_file, writing

_LONGEST_BAR = 40  # characters
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_GREY, _GREEN = "#8a8a8a", "#2e8b57"


def bar_lines(lengths: NDArray[np.int64]) -> Iterator[str]:
    """Yield one line per bar: range of lengths, bar, number of rows.

    Args:
        lengths: (rows,) tokens of each row, at least one row.
    """
    width = bar_width(int(lengths.max()))
    heights = np.bincount(lengths // width)
    first = int(lengths.min()) // width
    for index, height in enumerate(heights[first:].tolist(), start=first):
        eighths = -(-height * _LONGEST_BAR * 8 // int(heights.max()))  # rounded up, so that a single row is visible
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        numbers = f"{index * width:,}" + (f"–{(index + 1) * width - 1:,}" if width > 1 else "")
        yield f"  {numbers:>13}  {bar} {height:,}"


def bar_width(longest: int, max_bars: int = 12) -> int:
    """Return the smallest width of 1, 2 or 5 times a power of ten with at most `max_bars` bars up to `longest`."""
    width = 1
    while True:
        for factor in (1, 2, 5):
            if longest < width * factor * max_bars:
                return width * factor
        width *= 10


def png_output(name: str) -> Output:
    """The output of `--png`, before the rows are read.

    Raises:
        MachineError: matplotlib is not installed.
        MissingFileError: the folder does not exist.
        SettingError: it names no path of this machine.
    """
    otherwise = "Or leave --png out: the terminal shows the histogram too."
    need_package("matplotlib", "report", where="--png", does="draws the picture", otherwise=otherwise)
    output = output_file("--png", name, is_our_png)
    if not output.path.parent.is_dir():
        raise MissingFileError("--png", f"there is no folder {output.path.parent}", "Create it, or name another file.")
    return output


def write_png(output: Output, tokens: NDArray[np.int64], trained: NDArray[np.int64], max_tokens: int | None) -> None:
    """Write two histograms side by side: tokens and trained tokens per row.

    Args:
        output: from `png_output`.
        tokens: (rows,) tokens of each row.
        trained: (rows,) trained tokens of each row.
        max_tokens: the limit, drawn as a line if rows come close to it; None: no limit.

    Raises:
        SettingError: a file that is not ours is there.
        MachineError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, values, colour, name in ((left, tokens, _GREY, "tokens"), (right, trained, _GREEN, "trained tokens")):
        longest = int(values.max())
        width = bar_width(longest, max_bars=40)
        axes.hist(values, bins=range(0, longest + 2 * width, width), color=colour, edgecolor="white", linewidth=0.5)
        title = f"{name} per row: median {np.median(values):,.0f}, max {longest:,}"
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_xlabel(name)
        axes.set_ylabel("rows")
        axes.spines[["top", "right"]].set_visible(False)
    if max_tokens and max_tokens < 1.1 * tokens.max():
        left.axvline(max_tokens, color="black", linestyle=":")
        at_the_top = {"xycoords": ("data", "axes fraction"), "va": "top", "ha": "right", "rotation": 90}
        left.annotate("max_tokens", (max_tokens, 0.95), **at_the_top)
    with writing(output) as written:
        figure.savefig(written, dpi=150, format="png", metadata=PNG_METADATA)
