"""How long rows are, as bars in the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kyon_pl.errors import MissingFileError
from kyon_pl.imports import need_package

_LONGEST_BAR = 40  # characters
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_GREY, _GREEN = "#8a8a8a", "#2e8b57"


def bar_lines(counts_of: NDArray[np.int64]) -> Iterator[str]:
    """One line a bar: the range of the numbers, the bar, and how many of them lie there.

    Args:
        counts_of: (rows,) a number of tokens of each row, at least one row.
    """
    width = bar_width(int(counts_of.max()))
    heights = np.bincount(counts_of // width)
    first = int(counts_of.min()) // width
    for place, height in enumerate(heights[first:].tolist(), start=first):
        eighths = -(-height * _LONGEST_BAR * 8 // int(heights.max()))  # rounded up: one row can be seen, too
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        numbers = f"{place * width:,}" + (f"–{(place + 1) * width - 1:,}" if width > 1 else "")
        yield f"  {numbers:>13}  {bar} {height:,}"


def bar_width(longest: int, most_bars: int = 12) -> int:
    """A round number of tokens (1, 2 or 5, and zeros) that makes as many bars at most."""
    width = 1
    while True:
        for factor in (1, 2, 5):
            if longest < width * factor * most_bars:
                return width * factor
        width *= 10


def check_png(path: Path) -> None:
    """Refuse a picture that could not be written, before the work is done.

    Raises:
        MachineError: matplotlib is not installed.
        MissingFileError: there is no such folder.
    """
    otherwise = "Or leave --png out: the terminal shows the histogram too."
    need_package("matplotlib", "report", where="--png", does="draws the picture", otherwise=otherwise)
    if not path.parent.is_dir():
        raise MissingFileError("--png", f"there is no folder {path.parent}", "Make it, or name another file.")


def write_png(path: Path, tokens: NDArray[np.int64], trained: NDArray[np.int64], max_tokens: int | None) -> None:
    """Two histograms side by side: all tokens of a row, and its trained ones.

    Args:
        path: of the PNG.
        tokens: (rows,) of each row.
        trained: (rows,) of each row.
        max_tokens: drawn as a line where rows come near it; None: no limit.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, values, colour, name in ((left, tokens, _GREY, "tokens"), (right, trained, _GREEN, "trained tokens")):
        longest = int(values.max())
        width = bar_width(longest, most_bars=40)
        axes.hist(values, bins=range(0, longest + 2 * width, width), color=colour, edgecolor="white", linewidth=0.5)
        title = f"{name} a row: half have up to {np.median(values):,.0f}, the longest {longest:,}"
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_xlabel(name)
        axes.set_ylabel("rows")
        axes.spines[["top", "right"]].set_visible(False)
    if max_tokens and max_tokens < 1.1 * tokens.max():
        left.axvline(max_tokens, color="black", linestyle=":")
        at_the_top = {"xycoords": ("data", "axes fraction"), "va": "top", "ha": "right", "rotation": 90}
        left.annotate("max_tokens", (max_tokens, 0.95), **at_the_top)
    figure.savefig(path, dpi=150, format="png")
