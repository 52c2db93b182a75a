"""Which rows train, which validate, and how often each source is used in an epoch."""

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


def question_hash(context: str | list[int]) -> int:
    """What rows with the same question have in common, as a signed 64-bit number; of ids, the whole context counts."""
    return _hash(Context.parse(context).question.strip() if isinstance(context, str) else repr(context))


def dialogue_hash(dialogue: Any) -> int:
    """What rows of the same dialogue have in common, as a signed 64-bit number; 0 where none is known.

    Args:
        dialogue: what the row says of it, of whatever type; nothing, blank text and NaN say nothing.
    """
    known = dialogue is not None and dialogue == dialogue and str(dialogue).strip()
    return _hash(repr(dialogue)) if known else 0


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def group_rows(
    questions: NDArray[np.int64],
    dialogues: NDArray[np.int64],
    others: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> NDArray[np.int64]:
    """Which rows hang together by questions and dialogues, over however many others.

    Args:
        questions: (rows,) hash of each row's question.
        dialogues: (rows,) hash of each row's dialogue; 0: none is known.
        others: further questions that rows ask: two arrays of the same length, the numbers of the rows and the hashes.

    Returns:
        (rows,) the least question hash of each row's group: without dialogues and further questions, its own.
    """
    asking, further = others
    known = np.flatnonzero(dialogues)
    if not len(known) and not len(further):
        return questions
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # a node for each question and behind these one for each dialogue; each row is an edge between its two
    hashes, places = np.unique(np.concatenate([questions, further]), return_inverse=True)
    question, also = places[: len(questions)], places[len(questions) :]
    talks, talk = np.unique(dialogues[known], return_inverse=True)
    ends = np.concatenate([question[known], question[asking]]), np.concatenate([len(hashes) + talk, also])
    nodes = len(hashes) + len(talks)
    graph = coo_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(nodes, nodes))
    group = connected_components(graph, directed=False)[1]
    least = hashes[np.unique(group[: len(hashes)], return_index=True)[1]]
    return np.asarray(least[group[question]])


_FEWEST = 8


def split_by_question(
    questions: NDArray[np.int64], share: float, groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part rows into those to train on and those to validate on.

    Groups of rows go to validation in the order of their hashes until the share is reached: the same rows in every run,
    and mostly the same questions when rows are added. A handful of rows is taken where the share is less, but not more
    than a fifth.

    Args:
        questions: (rows,) hash of each row's question, as `kyon_pl.data.split.question_hash` gives it.
        share: of all rows, 0 to 1, for validation; a group more may be taken. 0: none.
        groups: (rows,) which rows must not be parted, as `kyon_pl.data.split.group_rows` gives it; None: those with
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


_MOST_TIMES = 1000
log = logging.getLogger("kyon_pl.data")


def check_weights(sources: str | list[str], weights: Sequence[float] | None) -> None:
    """Refuse weights that say nothing.

    Args:
        sources: `data.source`.
        weights: `data.source_weights`.

    Raises:
        SettingError: not as many weights as sources, one that is not above 0, or two that are too far apart.
    """
    if weights is None:
        return
    count = 1 if isinstance(sources, str) else len(sources)
    if len(weights) != count:
        found = f"{len(weights)} weights for {count} source{'s' if count > 1 else ''}"
        raise SettingError("data.source_weights", found, "Give one for each entry of data.source, in their order.")
    for weight in weights:
        if not 0 < weight < math.inf:
            fix = "Set numbers above 0; leave a source out that is not to be trained on."
            raise SettingError("data.source_weights", f"{weight} is no weight", fix)
    if max(weights) > _MOST_TIMES * min(weights):
        found = f"{max(weights):g} is more than {_MOST_TIMES:,} times {min(weights):g}"
        raise SettingError("data.source_weights", found, "Set weights that are closer to each other.")


@dataclass(frozen=True)
class Mix:
    """How often rows of each source appear in an epoch, relative to each other.

    A source of the least weight is gone through once an epoch, so no row is ever left out. One of k times that weight
    is gone through k times: when it is exhausted, it starts over. Of a fraction, as many of its rows are drawn as it
    says, once for all epochs, so that epochs are equally long. `[2, 1]` and `[1, 0.5]` are the same.

    Attributes:
        weights: of each source, as `check_weights` lets them pass.
        seed: of the rows that are drawn.
    """

    weights: tuple[float, ...]
    seed: int

    def times(self, source: int) -> float:
        """How often an epoch goes through a source, 1 or more."""
        return self.weights[source] / min(self.weights)

    def rows_of_an_epoch(self, numbers: NDArray[np.int64], sources: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of every epoch, one as often as it appears.

        Args:
            numbers: (rows,) of the rows.
            sources: (rows,) the source of each.

        Returns:
            (rows of an epoch,) numbers, each source spread evenly over all; shuffling comes after it.
        """
        mixed, places = [], []
        for source in range(len(self.weights)):
            own = self._repeated(numbers[sources == source], source)
            mixed.append(own)
            places.append((np.arange(len(own)) + 0.5) / max(1, len(own)))
        return np.asarray(np.concatenate(mixed)[np.argsort(np.concatenate(places), kind="stable")])

    def _repeated(self, own: NDArray[np.int64], source: int) -> NDArray[np.int64]:
        whole, fraction = divmod(self.times(source), 1)
        drawn = np.random.default_rng([self.seed, source]).permutation(own)[: round(fraction * len(own))]
        return np.concatenate([np.tile(own, int(whole)), np.sort(drawn)])

    def report(self, names: Sequence[str], sources: NDArray[np.int64]) -> None:
        """Say how many rows each source has and how often they appear.

        Args:
            names: of the sources.
            sources: (rows,) the source of each training row.
        """
        for source, name in enumerate(names):
            rows = int(np.count_nonzero(sources == source))
            text = "data: %s: %s rows to train on, weight %g: %g times an epoch"
            log.info(text, name, f"{rows:,}", self.weights[source], round(self.times(source), 3))
