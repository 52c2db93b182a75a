"""Rows as the model sees them: `kyon-pl preview`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kyon_pl.data.dialogue_data import DialogueData
from kyon_pl.data.encoding.table import EncodedTable
from kyon_pl.data.reading.quality import ODDITIES
from kyon_pl.data.shown_rows import Paint, row_lines
from kyon_pl.errors import SettingError
from kyon_pl.preview.histogram import bar_lines, check_png, write_png


def preview(data: DialogueData, rows: int = 3, png: str | None = None) -> None:
    """Show the first rows of the first epoch as the model sees them, and count what there is.

    Trained tokens are green and masked ones grey, special tokens reversed; where there are no colours (NO_COLOR, or not
    a terminal), trained ones stand in ⟦…⟧ and special ones in ‹…›. Of the base, the tokenizer's files are enough.

    Args:
        data: the rows and how they become batches.
        rows: how many to show.
        png: a file for the histograms of tokens a row; needs matplotlib (pip install 'kyon-pl[report]').

    Raises:
        SettingError: a negative number of rows.
        MachineError: a PNG is asked for, and matplotlib is not installed.
        MissingFileError: a PNG is asked for in a folder that is not there.
        KyonError: whatever is wrong with the data.
    """
    if rows < 0:
        raise SettingError("--rows", str(rows), "Give 0 or more.")
    if png:
        check_png(Path(png))
    data.load("fit")
    data.plan_training()
    for line in preview_lines(data, rows, Paint(colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))):
        print(line)
    if png:
        train = data.rows["train"]
        write_png(Path(png), train.tokens, train.trained_tokens(data.label_boundary), data.encoding.max_tokens)
    written = f"histograms written to {png}" if png else "nothing written (--png FILE writes the histograms)"
    print(f"preview: {min(rows, len(data.rows['train'])):,} of {len(data.rows['train']):,} rows shown; {written}")


def preview_lines(data: DialogueData, rows: int, paint: Paint) -> Iterator[str]:
    """All lines but the last one; `data` is set up."""
    yield from row_lines(data, rows, paint)
    yield paint.heading("what there is")
    yield from _count_lines(data)
    yield ""
    lengths = data.rows["train"].tokens
    yield paint.heading(f"tokens a row: half have up to {np.median(lengths):,.0f}, the longest {lengths.max():,}")
    yield from bar_lines(lengths)
    yield ""


def _count_lines(data: DialogueData) -> Iterator[str]:
    train, validation = data.rows["train"], data.rows["validation"]
    weighted = ", by their weights" if data.mix else ""
    yield _count("rows to train", len(train), f"of {len(train.table):,} read{weighted}")
    yield from _loss_lines(train.table)
    if validation.table is train.table:
        yield _count("rows to validate", len(validation), "of the same")
    else:
        yield _count("rows to validate", len(validation), f"of {len(validation.table):,} read")
        yield from _loss_lines(validation.table)
    tokens, trained = int(train.tokens.sum()), int(train.trained_tokens(data.label_boundary).sum())
    padding, batches = _padding_tokens(data), len(data.train_sampler or ())
    size = f"{data.tokens_per_batch:,} tokens" if data.batching == "packed" else f"{data.rows_per_batch:,} rows"
    yield _count("tokens of an epoch", tokens + padding, f"{batches:,} × {size}, {data.batching}")
    for name, part in (("  context, masked", tokens - trained), ("  trained", trained), ("  padding", padding)):
        yield _count(name, part, f"{part / (tokens + padding):.1%}")


def _loss_lines(table: EncodedTable) -> Iterator[str]:
    """What was left out, by kind, and what was shortened."""
    for kind, count in Counter(problem.split(":")[0] for problem in table.problems.values()).most_common():
        yield _count("  left out", count, kind)
    for kind, count in table.odd_counts().items():
        yield _count("  left out" if kind in table.drop else "  odd, kept", count, ODDITIES[kind])
    if shortened := int(np.count_nonzero(table.cut_tokens)):
        cut = f"to {table.settings.max_tokens:,} tokens; {table.cut_tokens.sum():,} tokens of their contexts left out"
        yield _count("  shortened", shortened, cut)


def _count(name: str, count: int, remark: str = "") -> str:
    return f"  {name:<23}{count:>12,}   {remark}".rstrip()


def _padding_tokens(data: DialogueData) -> int:
    """Of the first epoch."""
    assert data.train_sampler is not None
    tokens = data.rows["train"].tokens
    plan = data.train_sampler.planner.plan_epoch(0)
    if data.batching == "packed":
        return len(plan) * data.tokens_per_batch - int(tokens.sum())
    longest = np.maximum.reduceat(tokens[plan.rows], plan.bounds[:-1])
    return int((longest * np.diff(plan.bounds)).sum() - tokens.sum())
