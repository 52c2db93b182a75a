"""Which rows are trained and which validated, and how often each source appears in an epoch."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kyon_pl.data.prompt import Context
from kyon_pl.errors import SettingError

_MIN_VALIDATION_ROWS = 8
_MAX_WEIGHT_RATIO = 1000
log = logging.getLogger("kyon_pl.data")


def question_hash(context: str | list[int]) -> int:
    """Hash the question of a context to a signed 64-bit number; of token ids, the whole context."""
    return _hash(Context.parse(context).question.strip() if isinstance(context, str) else repr(context))


def dialogue_hash(dialogue: Any) -> int:
    """Hash a row's `dialogue` of any type to a signed 64-bit number; 0 for None, blank text and NaN."""
    given = dialogue is not None and dialogue == dialogue and str(dialogue).strip()
    return _hash(repr(dialogue)) if given else 0


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def group_rows(
    questions: NDArray[np.int64],
    dialogues: NDArray[np.int64],
    others: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> NDArray[np.int64]:
    """Group rows that share a question or a dialogue, directly or through other rows.

    Args:
        questions: (rows,) hash of each row's question.
        dialogues: (rows,) hash of each row's dialogue; 0: unknown.
        others: further questions of rows, as two arrays of the same length: row numbers and hashes.

    Returns:
        (rows,) the lowest question hash of each row's group: without dialogues and further questions, the row's own.
    """
    asking, further = others
    with_dialogue = np.flatnonzero(dialogues)
    if not len(with_dialogue) and not len(further):
        return questions
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # a graph with a node for each question, then one for each dialogue; each row is an edge between its two nodes
    hashes, nodes = np.unique(np.concatenate([questions, further]), return_inverse=True)
    question, also = nodes[: len(questions)], nodes[len(questions) :]
    distinct, dialogue = np.unique(dialogues[with_dialogue], return_inverse=True)
    starts = np.concatenate([question[with_dialogue], question[asking]])
    ends = np.concatenate([len(hashes) + dialogue, also])
    count = len(hashes) + len(distinct)
    graph = coo_array((np.ones(len(starts), dtype=np.int8), (starts, ends)), shape=(count, count))
    group = connected_components(graph, directed=False)[1]
    lowest = hashes[np.unique(group[: len(hashes)], return_index=True)[1]]
    return np.asarray(lowest[group[question]])


def split_by_question(
    questions: NDArray[np.int64], share: float, groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows into training and validation rows.

    Groups go to validation in the order of their hashes until the share is reached. The split is the same in every run
    and mostly stable when rows are added. At least 8 rows are taken, but never more than a fifth because of that.

    Args:
        questions: (rows,) hash of each row's question, from `question_hash`.
        share: share of all rows for validation, 0 to 1; one group more may be taken. 0: none.
        groups: (rows,) group of each row, from `group_rows`; a group is never split. None: rows with the same question.
            A group of several questions with more rows than are wanted is trained, because most rows can be in one
            group if many dialogues share a few questions.

    Returns:
        Indices of the training rows and of the validation rows, ascending. If there is one group, it is trained.
    """
    total = len(questions)
    wanted = max(round(share * total), min(_MIN_VALIDATION_ROWS, total // 5)) if share else 0
    hashes, group_of_row, sizes = np.unique(
        questions if groups is None else groups, return_inverse=True, return_counts=True
    )
    first_rows = np.unique(questions, return_index=True)[1]
    questions_of_group = np.bincount(group_of_row[first_rows], minlength=len(hashes))
    eligible = np.flatnonzero((questions_of_group == 1) | (sizes <= wanted))
    taken = int(np.searchsorted(np.cumsum(sizes[eligible]), wanted)) + 1 if wanted else 0
    validates = np.isin(group_of_row, eligible[: min(taken, len(hashes) - 1)])
    return np.flatnonzero(~validates), np.flatnonzero(validates)


def check_weights(sources: str | list[str], weights: Sequence[float] | None) -> None:
    """Check the weights of sources.

    Args:
        sources: `data.source`.
        weights: `data.source_weights`.

    Raises:
        SettingError: the number of weights differs from that of sources, a weight is not above 0, or the largest is
            over 1,000 times the smallest.
    """
    if weights is None:
        return
    count = 1 if isinstance(sources, str) else len(sources)
    if len(weights) != count:
        found = f"{len(weights)} weights for {count} sources" if count > 1 else f"{len(weights)} weights for 1 source"
        raise SettingError("data.source_weights", found, "Give one for each entry of data.source, in order.")
    for weight in weights:
        if not 0 < weight < math.inf:
            fix = "Set numbers above 0; to skip a source, remove it from data.source."
            raise SettingError("data.source_weights", f"{weight} is not a valid weight", fix)
    if max(weights) > _MAX_WEIGHT_RATIO * min(weights):
        found = f"{max(weights):g} is more than {_MAX_WEIGHT_RATIO:,} times {min(weights):g}"
        raise SettingError("data.source_weights", found, "Set weights that are closer to each other.")


@dataclass(frozen=True)
class Mix:
    """How often rows of each source appear in an epoch.

    An epoch takes each row of a source with the lowest weight once, and of one with k times that weight k times. For a
    fractional part of k, rows are drawn once for all epochs, so that all epochs are equally long. Only ratios matter:
    `[2, 1]` and `[1, 0.5]` are the same.

    Attributes:
        weights: weight of each source, valid for `check_weights`.
        seed: seed of the drawn rows.
    """

    weights: tuple[float, ...]
    seed: int

    def passes(self, source: int) -> float:
        """Return how many times an epoch goes through a source, 1 or more."""
        return self.weights[source] / min(self.weights)

    def rows_of_an_epoch(self, numbers: NDArray[np.int64], sources: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of every epoch, repeated by weight.

        Args:
            numbers: (rows,) row numbers.
            sources: (rows,) source of each row.

        Returns:
            (rows of an epoch,) row numbers, each source evenly spread over the epoch, before shuffling.
        """
        repeated = [self._repeat(numbers[sources == source], source) for source in range(len(self.weights))]
        positions = [(np.arange(len(rows)) + 0.5) / max(1, len(rows)) for rows in repeated]
        return np.asarray(np.concatenate(repeated)[np.argsort(np.concatenate(positions), kind="stable")])

    def _repeat(self, rows: NDArray[np.int64], source: int) -> NDArray[np.int64]:
        whole, fraction = divmod(self.passes(source), 1)
        drawn = np.random.default_rng([self.seed, source]).permutation(rows)[: round(fraction * len(rows))]
        return np.concatenate([np.tile(rows, int(whole)), np.sort(drawn)])

    def report(self, names: Sequence[str], sources: NDArray[np.int64]) -> None:
        """Log the number of rows of each source and how often they appear.

        Args:
            names: names of the sources.
            sources: (rows,) source of each training row.
        """
        for source, name in enumerate(names):
            rows = f"{np.count_nonzero(sources == source):,}"
            text = "data: %s: %s training rows, weight %g, %g× per epoch"
            log.info(text, name, rows, self.weights[source], round(self.passes(source), 3))
