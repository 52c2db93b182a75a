"""What is said of the rows before training, and the list of bad rows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np

from kyon_pl.data.batches.collate import LabelBoundary
from kyon_pl.data.batches.loader import TokenRows, Use
from kyon_pl.data.encoding.table import EncodedTable
from kyon_pl.data.reading.quality import ODDITIES
from kyon_pl.errors import MachineError
from kyon_pl.logs import from_here


@contextmanager
def listing(path: Path, setting: str) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """A function that writes one row into the list.

    Args:
        path: of the list; its folder is made if need be.
        setting: that names it, for the error.

    Raises:
        MachineError: nothing can be written there.
    """
    with _explained(path, setting):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")

    def write(row: Mapping[str, object]) -> None:
        with _explained(path, setting):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    try:
        yield write
    finally:
        with _explained(path, setting):  # what is left in the buffer may find the disk full
            file.close()


@contextmanager
def _explained(path: Path, setting: str) -> Iterator[None]:
    """Around what touches the list alone: other files that are not there have words of their own."""
    try:
        yield
    except OSError as error:
        found = f"{path} cannot be written ({error.strerror})"
        raise MachineError(setting, found, f"Name a file that can be written, or leave {setting} out.") from None


EOS_TOKEN_ID = 2
log = logging.getLogger("kyon_pl.data")


def report(tables: list[EncodedTable], shares: Mapping[Use, TokenRows], boundary: LabelBoundary) -> None:
    """Say what was read, what was left out, and what remains for each use; what is left out is a warning.

    Args:
        tables: all that was read.
        shares: the rows of each use.
        boundary: says which tokens are trained.
    """
    for table in tables:
        _report_table(table)
    for use, rows in shares.items():
        if use == "predict":
            log.info("data: predict: %s prompts", f"{len(rows):,}")
            continue
        tokens, trained = int(rows.tokens.sum()), int(rows.trained_tokens(boundary).sum())
        share = f" ({trained / tokens:.1%})" if tokens else ""
        log.info(
            "data: %s: %s rows, %s tokens, %s%s of them trained",
            use,
            f"{len(rows):,}",
            f"{tokens:,}",
            f"{trained:,}",
            share,
        )
    if len(shares.get("train", ())) and len(shares.get("validation", ())):
        _report_split(shares["train"], shares["validation"])


def list_bad_rows(path: Path, tables: list[EncodedTable]) -> None:
    """Write a line for each bad or odd row, with its file and line.

    Args:
        path: JSONL; its folder is made if need be.
        tables: all that was read.

    Raises:
        MachineError: nothing can be written there.
    """
    lines = 0
    with listing(path, "data.bad_rows_file") as write:
        for row in chain.from_iterable(table.bad_and_odd_rows() for table in tables):
            write(row)
            lines += 1
    log.info("data: %s bad and odd rows listed in %s", f"{lines:,}", from_here(path))


def _report_table(table: EncodedTable) -> None:
    files = table.rows.files
    names = ", ".join(Path(file).name if Path(file).is_file() else file for file in files[:3]) + (
        f" and {len(files) - 3:,} more files" if files[3:] else ""
    )
    log.info("data: %s rows in %s", f"{len(table):,}", names)
    if table.problems:
        log.warning("data: %s of them left out: %s", f"{len(table.problems):,}", table.kinds())
        for example in table.examples():
            log.warning("data:   %s", example)
    _report_odd_rows(table)
    unended = table.rows.count_without_end(EOS_TOKEN_ID) if table.settings.append_eos else 0
    if unended:
        text = "data: %s rows of ids do not end with the end of sequence (%d): the model will not learn to stop there"
        log.warning(text, f"{unended:,}", EOS_TOKEN_ID)
    shortened = np.count_nonzero(table.cut_tokens)
    if shortened:
        text = "data: %s of them shortened to %s tokens: the oldest text of their contexts, %s tokens in all, left out"
        log.info(text, f"{shortened:,}", f"{table.settings.max_tokens:,}", f"{table.cut_tokens.sum():,}")


def _report_odd_rows(table: EncodedTable) -> None:
    for kind, count in table.odd_counts().items():
        fate = "left out" if kind in table.drop else f"kept; data.drop: [{kind}] leaves them out"
        log.info("data: %s of them are %s (%s)", f"{count:,}", ODDITIES[kind], fate)
    if left_out := len(table.good) - len(table.kept):
        log.warning("data: %s odd rows left out in all (data.drop)", f"{left_out:,}")


def _report_split(train: TokenRows, validation: TokenRows) -> None:
    _report_dialogues(train, validation)
    asked = np.unique(validation.questions)
    known = np.isin(asked, train.questions).sum()
    if known:
        text = "data: %s of the %s validation questions are trained on too: the validation loss will look too good"
        log.warning(text, f"{known:,}", f"{len(asked):,}")
    else:
        log.info("data: none of the %s validation questions is trained on", f"{len(asked):,}")


def _report_dialogues(train: TokenRows, validation: TokenRows) -> None:
    """Where dialogues are known."""
    spoken = np.setdiff1d(validation.dialogues, [0])
    if not len(spoken):
        return
    if known := np.isin(spoken, train.dialogues).sum():
        text = "data: %s of the %s validation dialogues are trained on too: the validation loss will look too good"
        log.warning(text, f"{known:,}", f"{len(spoken):,}")
    else:
        log.info("data: none of the %s validation dialogues is trained on", f"{len(spoken):,}")
