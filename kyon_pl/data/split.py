"""Which rows validate: whole questions, and whole dialogues where these are known, so that none is on both sides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FEWEST = 8


def split_by_question(
    questions: NDArray[np.int64], share: float, groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part rows into those to train on and those to validate on.

    Groups of rows go to validation in the order of their hashes until the share is reached: the same rows in every run,
    and mostly the same questions when rows are added. A handful of rows is taken where the share is less, but not more
    than a fifth.

    Args:
        questions: (rows,) hash of each row's question, as `kyon_pl.data.groups.question_hash` gives it.
        share: of all rows, 0 to 1, for validation; a group more may be taken. 0: none.
        groups: (rows,) which rows must not be parted, as `kyon_pl.data.groups.group_rows` gives it; None: those with
            the same question. One of several questions that has more rows than are wanted trains: where many dialogues
            share a few questions, most rows can be of one group.

    Returns:
        Places of the training rows and of the validation rows, both in their order. Rows of a single group train.
    """
    total = len(questions)
    wanted = max(round(share * total), min(_FEWEST, total // 5)) if share else 0
    hashes, group_of_row, sizes = np.unique(
        questions if groups is None else groups, return_inverse=True, return_counts=True
    )
    first_rows = np.unique(questions, return_index=True)[1]
    questions_of_group = np.bincount(group_of_row[first_rows], minlength=len(hashes))
    free = np.flatnonzero((questions_of_group == 1) | (sizes <= wanted))
    taken = int(np.searchsorted(np.cumsum(sizes[free]), wanted)) + 1 if wanted else 0
    validates = np.isin(group_of_row, free[: min(taken, len(hashes) - 1)])
    return np.flatnonzero(~validates), np.flatnonzero(validates)
