"""Several sources mixed by weight: how often an epoch goes through each."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kyon_pl.errors import SettingError

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
