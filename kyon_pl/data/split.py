"""Which rows validate: whole questions, so that none is ever on both sides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FEWEST = 8


def split_by_question(questions: NDArray[np.int64], share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part rows into those to train on and those to validate on.

    Questions go to validation in the order of their hashes until the share is reached: the same rows in every run, and
    mostly the same questions when rows are added. A handful of rows is taken where the share is less, but not more than
    a fifth.

    Args:
        questions: (rows,) hash of each row's question, as `kyon_pl.data.encode.question_hash` gives it.
        share: of all rows, 0 to 1, for validation; a question more may be taken. 0: none.

    Returns:
        Places of the training rows and of the validation rows, both in their order. Rows that all ask the same train.
    """
    total = len(questions)
    wanted = max(round(share * total), min(_FEWEST, total // 5)) if share else 0
    hashes, group_of_row, sizes = np.unique(questions, return_inverse=True, return_counts=True)
    taken = int(np.searchsorted(np.cumsum(sizes), wanted)) + 1 if wanted else 0
    validates = group_of_row < min(taken, len(hashes) - 1)
    return np.flatnonzero(~validates), np.flatnonzero(validates)
