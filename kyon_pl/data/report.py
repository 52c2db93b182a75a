"""What was read, what was left out and what is trained on, in a few lines before training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kyon_pl.data.collate import LabelBoundary
from kyon_pl.data.rows import TokenRows, Use
from kyon_pl.data.table import EncodedTable

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
    unended = table.rows.count_without_end(EOS_TOKEN_ID) if table.settings.append_eos else 0
    if unended:
        text = "data: %s rows of ids do not end with the end of sequence (%d): the model will not learn to stop there"
        log.warning(text, f"{unended:,}", EOS_TOKEN_ID)
    shortened = np.count_nonzero(table.cut_tokens)
    if shortened:
        text = "data: %s of them shortened to %s tokens: the oldest text of their contexts, %s tokens in all, left out"
        log.info(text, f"{shortened:,}", f"{table.settings.max_tokens:,}", f"{table.cut_tokens.sum():,}")


def _report_split(train: TokenRows, validation: TokenRows) -> None:
    asked = np.unique(validation.questions)
    known = np.isin(asked, train.questions).sum()
    if known:
        text = "data: %s of the %s validation questions are trained on too: the validation loss will look too good"
        log.warning(text, f"{known:,}", f"{len(asked):,}")
    else:
        log.info("data: none of the %s validation questions is trained on", f"{len(asked):,}")
