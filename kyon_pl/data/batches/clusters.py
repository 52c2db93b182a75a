"""Clusters of rows that share their beginnings: the items that are packed when `data.batching` is `shared`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kyon_pl.data.encoding.tree import SharedTree


@dataclass(frozen=True, eq=False)
class Clusters:
    """Rows cut into clusters; cluster i is `rows[bounds[i]:bounds[i + 1]]`.

    Attributes:
        rows: (rows,) int64, every row number once.
        shared: (rows,) int64, leading tokens that a row shares with the row before it; 0 for the first of a cluster.
        bounds: (clusters + 1,) int64, ascending from 0 to the number of rows.
    """

    rows: NDArray[np.int64]
    shared: NDArray[np.int64]
    bounds: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def halved(self, share: float, row_tokens: NDArray[np.int64], limit: int, rng: np.random.Generator) -> Clusters:
        """Cut a random share of the clusters of more than `limit` tokens in two, where the least is shared.

        Args:
            share: 0 to 1.
            row_tokens: (rows,) tokens of each row number.
            limit: in tokens.
            rng: draws the clusters.
        """
        large = (self.tokens(row_tokens) > limit) & (np.diff(self.bounds) > 1)
        chosen = np.flatnonzero(large)
        chosen = chosen[rng.random(len(chosen)) < share]
        cuts = [
            self._weakest(int(start), int(end))
            for start, end in zip(self.bounds[chosen], self.bounds[chosen + 1], strict=True)
        ]
        bounds = np.sort(np.concatenate([self.bounds, np.array(cuts, dtype=np.int64)]))
        shared = self.shared.copy()
        shared[bounds[:-1]] = 0
        return Clusters(self.rows, shared, bounds)

    def _weakest(self, start: int, end: int) -> int:
        """Return the row in the middle half of a cluster that shares least with the row before it."""
        quarter = (end - start) // 4
        first = start + max(1, quarter)
        return first + int(np.argmin(self.shared[first : end - quarter]))

    def tokens(self, row_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (clusters,) computed tokens of each cluster.

        Args:
            row_tokens: (rows,) tokens of each row number.
        """
        cumulative = np.concatenate([[0], np.cumsum(row_tokens[self.rows] - self.shared)])
        return np.diff(cumulative[self.bounds])

    def chosen(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of some clusters in the order of `numbers`, and what each shares with the row before it."""
        sizes = np.diff(self.bounds)[numbers]
        starts = np.cumsum(sizes) - sizes
        places = np.repeat(self.bounds[numbers] - starts, sizes) + np.arange(sizes.sum())
        return self.rows[places], self.shared[places]


def cut_clusters(
    tree: SharedTree, row_tokens: NDArray[np.int64], rows_per_cluster: int | None, budget: int
) -> Clusters:
    """Cut rows in depth-first order into the clusters that save the most tokens.

    Dynamic programming over the cuts, O(rows): a cluster from row j to row i - 1 saves what its rows after the first
    share, S[i] - S[j + 1] for sums S, so the best j for i maximizes saved[j] - S[j + 1] in a sliding window. Of equally
    good cuts, the one with the smaller cluster is taken.

    Args:
        tree: the rows, and what neighbours share.
        row_tokens: (rows,) tokens of each row number.
        rows_per_cluster: most rows of a cluster; None: no limit.
        budget: most computed tokens of a cluster; no row is longer.
    """
    shared = tree.shared
    count = len(shared)
    sums = np.concatenate([[0], np.cumsum(shared)]).tolist()
    computed = np.concatenate([[0], np.cumsum(row_tokens[tree.rows] - shared)]).tolist()
    extra = shared.tolist()  # tokens that the first row of a cluster computes in addition
    limit = count if rows_per_cluster is None else rows_per_cluster
    start_of = [0] * (count + 1)  # first row of the cluster that ends before row i
    saved, earliest = 0, 0
    window: deque[tuple[int, int]] = deque()  # (value, j), values descending
    for end in range(1, count + 1):
        value = saved - sums[end]  # saved[j] - S[j + 1] for j = end - 1
        while window and window[-1][0] <= value:
            window.pop()
        window.append((value, end - 1))
        while computed[end] - computed[earliest] + extra[earliest] > budget or end - earliest > limit:
            earliest += 1
        while window[0][1] < earliest:
            window.popleft()
        best, start_of[end] = window[0]
        saved = best + sums[end]
    bounds = [count]
    while bounds[-1] > 0:
        bounds.append(start_of[bounds[-1]])
    cuts = np.array(bounds[::-1], dtype=np.int64)
    shared = shared.copy()
    shared[cuts[:-1]] = 0
    return Clusters(tree.rows, shared, cuts)
