"""Rows as the model sees them: `kyon-pl preview`."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from kyon_pl.data.batches.plan import PACKED, EpochPlan
from kyon_pl.data.dialogue_data import DialogueData
from kyon_pl.data.encoding.table import EncodedTable
from kyon_pl.data.reading.quality import ODDITIES
from kyon_pl.data.shown_rows import Paint, row_lines
from kyon_pl.errors import SettingError
from kyon_pl.language import localized, padded
from kyon_pl.logs import replace_control_characters
from kyon_pl.outputs import check_outputs
from kyon_pl.preview.histogram import bar_lines, png_output, write_png

log = logging.getLogger(__name__)

_MOST_ROWS_OF_A_CHARACTER = 5000  # configs/character.yaml takes at most 2,000 steps of 4 rows


def preview(data: DialogueData, rows: int = 3, png: str | None = None, given: Sequence[str] = ()) -> None:
    """Show the first rows of the first epoch as the model sees them, and count rows and tokens.

    Trained tokens are green, masked ones grey, special tokens reversed. Without colours (NO_COLOR, or not a terminal),
    trained tokens are in ⟦…⟧ and special ones in ‹…›. Of the base, only the tokenizer's files are needed.

    Args:
        data: the rows and their batches.
        rows: number of rows to show.
        png: file for histograms of tokens per row; needs matplotlib (pip install 'kyon-pl[report]').
        given: the settings of fit on the command line, for the next command.

    Raises:
        SettingError: the number of rows is negative, or an output is an input or a file that is not ours.
        MachineError: matplotlib is needed for the PNG and not installed.
        MissingFileError: the folder of the PNG does not exist.
        KyonError: the data cannot be used.
    """
    if rows < 0:
        raise SettingError("--rows", str(rows), "Give 0 or more.")
    picture = png_output(png) if png else None
    check_outputs([*data.outputs(), *([picture] if picture else [])], data.inputs())
    data.load("fit")
    data.plan_training()
    for line in preview_lines(data, rows, Paint(colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))):
        print(line)
    train = data.rows["train"]
    if picture:
        write_png(picture, train.tokens, train.trained_tokens(data.label_boundary), data.encoding.max_tokens)
    written = f"histograms written to {png}" if png else "nothing written (--png FILE writes the histograms)"
    shown = f"preview: {min(rows, len(train)):,} of {len(train):,} rows shown; {written}"
    print(replace_control_characters(localized(shown)))
    log.info("next: %s", fit_command(given, data, len(train)))


def fit_command(given: Sequence[str], data: DialogueData, rows: int) -> str:
    """The command that trains on the rows of a preview, with the same settings.

    Args:
        given: the settings of fit on the command line.
        data: the rows that were shown.
        rows: number of training rows.
    """
    if not any(word.startswith(("--config", "-c")) for word in given):
        config = "character" if rows <= _MOST_ROWS_OF_A_CHARACTER else "lora"
        given = ["--config", "demo" if data.source == "demo" else config, *given]
    return shlex.join(["kyon-pl", "fit", *given])


def preview_lines(data: DialogueData, rows: int, paint: Paint) -> Iterator[str]:
    """Yield all lines but the last; `data` is loaded and planned."""
    yield from row_lines(data, rows, paint)
    yield paint.heading(localized("counts"))
    yield from _row_counts(data)
    yield from _token_counts(data)
    yield ""
    lengths = data.rows["train"].tokens
    yield paint.heading(localized(f"tokens per row: median {np.median(lengths):,.0f}, max {lengths.max():,}"))
    yield from bar_lines(lengths)
    yield ""


def _row_counts(data: DialogueData) -> Iterator[str]:
    train, validation = data.rows["train"], data.rows["validation"]
    weighted = ", weighted" if data.mix else ""
    yield _count_line("training rows", len(train), f"of {len(train.table):,} read{weighted}")
    yield from _table_counts(train.table)
    if validation.table is train.table:
        yield _count_line("validation rows", len(validation), "of the same")
    else:
        yield _count_line("validation rows", len(validation), f"of {len(validation.table):,} read")
        yield from _table_counts(validation.table)


def _table_counts(table: EncodedTable) -> Iterator[str]:
    """Count skipped, odd and shortened rows."""
    for kind, count in Counter(problem.split(":")[0] for problem in table.problems.values()).most_common():
        yield _count_line("  skipped", count, kind)
    for kind, count in table.odd_counts().items():
        yield _count_line("  dropped" if kind in table.drop else "  odd, kept", count, ODDITIES[kind])
    if shortened := int(np.count_nonzero(table.cut_tokens)):
        cut = f"to {table.settings.max_tokens:,} tokens; {table.cut_tokens.sum():,} tokens of their contexts removed"
        yield _count_line("  shortened", shortened, cut)


def _token_counts(data: DialogueData) -> Iterator[str]:
    train = data.rows["train"]
    tokens, trained = int(train.tokens.sum()), int(train.trained_tokens(data.label_boundary).sum())
    plan = data.sampler.planner.plan_epoch(0)
    shared = 0 if plan.shared is None else int(plan.shared.sum())
    padding = _padding_tokens(data, plan, shared)
    size = f"{data.tokens_per_batch:,} tokens" if data.batching in PACKED else f"{data.rows_per_batch:,} rows"
    slots = tokens - shared + padding
    yield _count_line("tokens per epoch", slots, f"{len(data.sampler):,} × {size}, {data.batching}")
    for name, part in (("  masked context", tokens - trained), ("  trained", trained), ("  padding", padding)):
        yield _count_line(name, part, f"{part / slots:.1%}")
    if shared:
        yield _count_line("  shared", -shared, f"{shared / tokens:.1%} of the rows' tokens are not computed again")


def _count_line(name: str, count: int, remark: str = "") -> str:
    return f"  {padded(localized(name), 23)}{count:>12,}   {localized(remark)}".rstrip()


def _padding_tokens(data: DialogueData, plan: EpochPlan, shared_tokens: int) -> int:
    tokens = data.rows["train"].tokens
    if data.batching in PACKED:
        return len(plan) * data.tokens_per_batch - int(tokens.sum()) + shared_tokens
    longest = np.maximum.reduceat(tokens[plan.rows], plan.bounds[:-1])
    return int((longest * np.diff(plan.bounds)).sum() - tokens.sum())
