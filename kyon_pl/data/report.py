"""The summary of the rows that is logged before training, and the file of bad rows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kyon_pl.data.batches.collate import LabelBoundary
from kyon_pl.data.batches.loader import TokenRows, Use
from kyon_pl.data.encoding.table import EncodedTable
from kyon_pl.data.reading.quality import ODDITIES
from kyon_pl.data.reading.report import report_forms
from kyon_pl.logs import from_here
from kyon_pl.outputs import Output, output_file, rows_with, writing

EOS_TOKEN_ID = 2
BAD_ROW_KEYS = ("file", "line", "left_out", "problem", "odd", "target")
"""Of a row in `data.bad_rows_file`."""

_MANY_REPLIES_SHARE = 0.1  # of the rows; from here on, what is learned is mostly a mixture
_EXAMPLE_CHARACTERS = 60
log = logging.getLogger("kyon_pl.data")


def report(tables: list[EncodedTable], rows_by_use: Mapping[Use, TokenRows], boundary: LabelBoundary) -> None:
    """Log what was read, skipped (as a warning), shortened, and what remains for each use.

    Args:
        tables: all tables that were read.
        rows_by_use: the rows of each use.
        boundary: the first trained token, see `first_label`.
    """
    for table in tables:
        _report_table(table)
    for use, rows in rows_by_use.items():
        if use == "predict":
            log.info("data: predict: %s prompts", f"{len(rows):,}")
            continue
        tokens, trained = int(rows.tokens.sum()), int(rows.trained_tokens(boundary).sum())
        share = f" ({trained / tokens:.1%})" if tokens else ""
        counts = f"{len(rows):,}", f"{tokens:,}", f"{trained:,}{share}"
        log.info("data: %s: %s rows, %s tokens, %s of them trained", use, *counts)
    train, validation = rows_by_use.get("train", ()), rows_by_use.get("validation", ())
    if train and validation:
        _report_overlap("dialogues", train.dialogues, np.setdiff1d(validation.dialogues, [0]))
        _report_overlap("questions", train.questions, np.unique(validation.questions))


def bad_rows_output(name: str) -> Output:
    """The output of `data.bad_rows_file`.

    Raises:
        SettingError: it names no path of this machine.
    """
    return output_file("data.bad_rows_file", name, rows_with(BAD_ROW_KEYS))


def write_bad_rows(output: Output, tables: list[EncodedTable]) -> None:
    """Write one JSON line for each bad or odd row, with its file and line.

    Args:
        output: from `bad_rows_output`; its folder is created if needed.
        tables: all tables that were read.

    Raises:
        SettingError: a file that is not ours is there.
        MachineError: the file cannot be written.
    """
    lines = 0
    with jsonl_writer(output) as write:
        for row in chain.from_iterable(table.bad_and_odd_rows() for table in tables):
            write(row)
            lines += 1
    log.info("data: %s bad and odd rows written to %s", f"{lines:,}", from_here(output.path))


@contextmanager
def jsonl_writer(output: Output) -> Iterator[Callable[[Mapping[str, object]], object]]:
    """Yield a function that writes one row to a JSONL file, which is complete at the end of the block.

    Args:
        output: the file; its folder is created if needed.

    Raises:
        SettingError: a file that is not ours is there.
        MachineError: the file cannot be written.
    """
    with writing(output) as written, written.open("w", encoding="utf-8") as file:
        yield lambda row: file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _report_table(table: EncodedTable) -> None:
    files = table.rows.files
    names = ", ".join(Path(file).name if Path(file).is_file() else file for file in files[:3])
    more = f" and {len(files) - 3:,} more files" if len(files) > 3 else ""
    log.info("data: %s rows in %s%s", f"{len(table):,}", names, more)
    report_forms(table.rows)
    _report_replies(table)
    if table.problems:
        log.warning("data: %s rows skipped: %s", f"{len(table.problems):,}", table.count_problems())
        for example in table.examples():
            log.warning("data:   %s", example)
    for kind, count in table.odd_counts().items():
        remark = "dropped" if kind in table.drop else f"kept; set data.drop: [{kind}] to drop them"
        log.info("data: %s %s (%s)", f"{count:,}", ODDITIES[kind], remark)
    if dropped := len(table.good) - len(table.kept):
        log.warning("data: %s odd rows dropped in all (data.drop)", f"{dropped:,}")
    without_eos = table.rows.count_without_eos(EOS_TOKEN_ID) if table.settings.append_eos else 0
    if without_eos:
        text = "data: %s rows of token ids lack the end-of-sequence token (%d): the model does not learn to stop there"
        log.warning(text, f"{without_eos:,}", EOS_TOKEN_ID)
    if shortened := np.count_nonzero(table.cut_tokens):
        text = "data: %s rows shortened to %s tokens: the oldest %s tokens of their contexts were removed"
        log.info(text, f"{shortened:,}", f"{table.settings.max_tokens:,}", f"{table.cut_tokens.sum():,}")


def _report_replies(table: EncodedTable) -> None:
    """Log how many rows have a prompt with several different replies, and the prompt with the most."""
    prompts = [hash(text) for chunk in table.rows.dataset.data.column("context").chunks for text in chunk.to_pylist()]
    rows = np.stack([np.asarray(prompts), table.row_hashes], axis=1)[table.good]
    rows = np.unique(rows[rows[:, 0] != hash("")], axis=0)  # without duplicates, and rows of ids
    distinct, replies = np.unique(rows[:, 0], return_counts=True)
    several = replies > 1
    if not several.any():
        return
    most = distinct[np.argmax(replies)]
    example = next(number for number in table.good.tolist() if prompts[number] == most)
    text = "data: %s replies to %s prompts that have several different replies; one has %s: %s, %r"
    question = str(table.rows.dataset[example]["context"])[-_EXAMPLE_CHARACTERS:]
    share = replies[several].sum() / len(rows)
    level = logging.WARNING if share >= _MANY_REPLIES_SHARE else logging.INFO
    counts = f"{replies[several].sum():,}", f"{several.sum():,}", f"{replies.max():,}"
    log.log(level, text, *counts, table.rows.place(example), question)


def _report_overlap(name: str, train: NDArray[np.int64], validation: NDArray[np.int64]) -> None:
    """Log how many of the distinct validation questions or dialogues are in the training rows, too."""
    shared, total = np.isin(validation, train).sum(), f"{len(validation):,}"
    if shared:
        text = "data: %s of the %s validation %s are also trained on: the validation loss will be too low"
        log.warning(text, f"{shared:,}", total, name)
    elif len(validation):
        log.info("data: none of the %s validation %s is trained on", total, name)
