"""Rows as the model sees them: `kyon-pl preview`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kyon_pl.batch import Batch
from kyon_pl.data.datamodule import DialogueDataModule
from kyon_pl.data.histogram import bar_lines, check_png, write_png
from kyon_pl.data.quality import ODDITIES
from kyon_pl.data.table import EncodedTable
from kyon_pl.data.tokenizer import load_tokenizer
from kyon_pl.data.visible import Paint, Span, name_tokens, spans
from kyon_pl.errors import SettingError


def preview(data: DialogueDataModule, rows: int = 3, png: str | None = None) -> None:
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
    data.prepare_data()
    data.setup("fit")
    for line in preview_lines(data, rows, Paint(colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))):
        print(line)
    if png:
        train = data.rows["train"]
        write_png(Path(png), train.tokens, train.trained_tokens(data.label_boundary), data.encoding.max_tokens)
    written = f"histograms written to {png}" if png else "nothing written (--png FILE writes the histograms)"
    print(f"preview: {min(rows, len(data.rows['train'])):,} of {len(data.rows['train']):,} rows shown; {written}")


def preview_lines(data: DialogueDataModule, rows: int, paint: Paint) -> Iterator[str]:
    """All lines but the last one; `data` is set up."""
    yield from _row_lines(data, rows, paint)
    yield paint.heading("what there is")
    yield from _count_lines(data)
    yield ""
    lengths = data.rows["train"].tokens
    yield paint.heading(f"tokens a row: half have up to {np.median(lengths):,.0f}, the longest {lengths.max():,}")
    yield from bar_lines(lengths)
    yield ""


def rows_text(data: DialogueDataModule, rows: int) -> str:
    """The first rows without colours, for a logger; `data` is set up."""
    return "\n".join(_row_lines(data, rows, Paint(colour=False)))


def _row_lines(data: DialogueDataModule, rows: int, paint: Paint) -> Iterator[str]:
    tokenizer = load_tokenizer(data.tokenizer, data.tokenizer_revision)
    for row in islice(_shown_rows(data), rows):
        yield paint.heading(row.heading)
        tokens = name_tokens(row.ids.tolist(), tokenizer)
        shown = list(spans(tokens, row.trained.tolist()))
        yield paint.text(shown + ([Span(f"pad × {row.pads:,}", trained=False, special=True)] if row.pads else []))
        yield ""


@dataclass(frozen=True)
class _ShownRow:
    """A row as it stands in a batch.

    Attributes:
        ids: (tokens,).
        trained: (tokens,), bool, whether the loss counts how well it is predicted.
        pads: the padding behind it, in tokens.
    """

    heading: str
    ids: Tensor
    trained: Tensor
    pads: int


def _shown_rows(data: DialogueDataModule) -> Iterator[_ShownRow]:
    """Row by row through the batches of the first epoch."""
    for number, batch in enumerate(data.planned_batches(), start=1):
        name = f"{'pack' if data.batching == 'packed' else 'batch'} {number:,}"
        ids, trained = batch.input_ids.flatten(), _trained(batch)
        for place, (start, end, pads) in enumerate(_bounds(data, batch)):
            count = int(trained[start:end].sum())
            heading = (
                f"── {name}, row {place + 1} of {len(batch.row_numbers)}, "
                + (f"tokens {start:,}–{end - 1:,}, " if batch.cu_seqlens is not None else "")
                + f"{end - start - count:,} masked + {count:,} trained · {_where(data, batch.row_numbers[place])}"
            )
            yield _ShownRow(heading, ids[start:end], trained[start:end], pads)


def _trained(batch: Batch) -> Tensor:
    """(R * T,), bool: the tokens that the loss is computed at, as it is told them."""
    assert batch.trained_positions is not None
    trained = torch.zeros(batch.input_ids.numel(), dtype=torch.bool)
    trained[batch.trained_positions + 1] = True
    return trained


def _bounds(data: DialogueDataModule, batch: Batch) -> Iterator[tuple[int, int, int]]:
    """Start and end of each row among all tokens of the batch, and the padding behind it."""
    count = len(batch.row_numbers)
    if batch.cu_seqlens is not None:
        bounds = batch.cu_seqlens.tolist()
        for place in range(count):
            rest = bounds[-1] - bounds[count] if place == count - 1 else 0
            yield bounds[place], bounds[place + 1], rest
        return
    width = batch.input_ids.shape[1]
    lengths = data.rows["train"].tokens[list(batch.row_numbers)].tolist()
    for place, length in enumerate(lengths):
        yield place * width, place * width + length, width - length


def _where(data: DialogueDataModule, place: int) -> str:
    """File and line of a training row, and what was left out of it."""
    rows = data.rows["train"]
    number = int(rows.numbers[place])
    cut = int(rows.table.cut_tokens[number])
    left_out = f" · {cut:,} tokens of its context left out" if cut else ""
    return f"{Path(rows.table.rows.place(number)).name}{left_out}"


def _count_lines(data: DialogueDataModule) -> Iterator[str]:
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


def _padding_tokens(data: DialogueDataModule) -> int:
    """Of the first epoch."""
    assert data.train_sampler is not None
    tokens = data.rows["train"].tokens
    plan = data.train_sampler.planner.plan_epoch(0)
    if data.batching == "packed":
        return len(plan) * data.tokens_per_batch - int(tokens.sum())
    longest = np.maximum.reduceat(tokens[plan.rows], plan.bounds[:-1])
    return int((longest * np.diff(plan.bounds)).sum() - tokens.sum())
