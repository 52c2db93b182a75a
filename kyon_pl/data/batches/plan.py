"""The plan of an epoch: which rows go into which micro-batch, and in which order.

The plan covers all ranks and is a pure function of row lengths, settings, seed and epoch. All epochs have the same
number of micro-batches, so the length of a learning-rate schedule is known before the first step.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kyon_pl.data.batches.clusters import Clusters, cut_clusters
from kyon_pl.data.encoding.tree import SharedTree
from kyon_pl.errors import SettingError

Batching = Literal["packed", "shared", "grouped", "padded"]
PACKED: frozenset[str] = frozenset(("packed", "shared"))
"""The kinds of batching with micro-batches of `tokens_per_batch` tokens, in which rows are concatenated."""

# Rows are sorted within windows, by lengths with a little noise (blur), so that packs differ between epochs. Wider
# windows and less blur fill the packs better; the last attempt is plain best-fit decreasing.
_WINDOW_PACKS_AND_BLUR = ((2048, 0.05), (16384, 0.02), (None, 0.0))
_WINDOW_BATCHES, _BLUR = 64, 0.05
# Clusters larger than half a pack fill packs badly. As many of them are halved as yields the fewest packs.
_HALVED_SHARES = (0.0, 0.1, 0.3, 0.5, 1.0)
_DRAWS = 4  # of clusters in an epoch, before those of `batches_per_epoch` are taken
_UNLIMITED_CLUSTER = 4  # longest rows for which a pack has room, if clusters have no limit
_NO_TREE = SharedTree(np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The micro-batches of an epoch over all ranks, in order; micro-batch i is `rows[bounds[i]:bounds[i + 1]]`.

    Attributes:
        rows: (rows,) int64, every row number once.
        bounds: (micro-batches + 1,) int64, ascending from 0 to the number of rows.
        shared: (rows,) int64, tokens that each row shares with the row before it in its micro-batch; None: nothing.
    """

    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]
    shared: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def row_numbers(self, index: int) -> tuple[int, ...]:
        """Return the rows of micro-batch `index`; none after the last one."""
        if index >= len(self):
            return ()
        return tuple(self.rows[self.bounds[index] : self.bounds[index + 1]].tolist())

    def shared_tokens(self, index: int) -> tuple[int, ...]:
        """Return what each row of micro-batch `index` shares with the row before it; empty if nothing is shared."""
        if self.shared is None or index >= len(self):
            return ()
        return tuple(self.shared[self.bounds[index] : self.bounds[index + 1]].tolist())

    def rows_of(self, clusters: Clusters) -> EpochPlan:
        """Return the plan of rows, given that this is a plan of clusters."""
        rows, shared = clusters.chosen(self.rows)
        ends = np.concatenate([[0], np.cumsum(np.diff(clusters.bounds)[self.rows])])
        return EpochPlan(rows, ends[self.bounds], shared)

    def sums(self, of_rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (micro-batches,) int64, the sums over each micro-batch of (rows,) numbers."""
        cumulative = np.concatenate([[0], np.cumsum(of_rows[self.rows], dtype=np.int64)])
        return np.diff(cumulative[self.bounds])

    def split_to(self, count: int, rng: np.random.Generator) -> EpochPlan:
        """Halve random micro-batches of more than one row until there are `count`."""
        bounds = self.bounds
        while (missing := count - (len(bounds) - 1)) > 0:
            sizes = np.diff(bounds)
            halved = rng.permutation(np.flatnonzero(sizes > 1))[:missing]
            bounds = np.sort(np.append(bounds, bounds[halved] + sizes[halved] // 2))
        return EpochPlan(self.rows, bounds)

    def joined(self, count: int) -> EpochPlan:
        """Join every `count` consecutive micro-batches into one; the last one can have fewer."""
        return replace(self, bounds=np.append(self.bounds[:-1:count], self.bounds[-1]))

    def reordered(self, order: NDArray[np.int64]) -> EpochPlan:
        """Reorder the micro-batches; number `order[0]` becomes the first."""
        sizes = np.diff(self.bounds)
        positions = np.repeat(np.argsort(order), sizes)
        return EpochPlan(self.rows[np.argsort(positions, kind="stable")], _bounds(sizes[order]))


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchPlanner:
    """Plans the micro-batches of any epoch.

    Attributes:
        row_tokens: (rows,) integers, tokens of each encoded row.
        row_trained_tokens: (rows,) integers, labels other than -100 of each row.
        batching: `packed`: rows concatenated up to `tokens_per_batch`; `shared`: packed, and what up to
            `rows_per_cluster` rows have in common is computed once; `grouped`: `rows_per_batch` rows of similar
            length, padded; `padded`: `rows_per_batch` rows in shuffled order, padded.
        rows_per_batch: rows of a micro-batch, if not packed.
        tokens_per_batch: most tokens of a micro-batch, if packed.
        tokens_per_pack: plan packs of this size and join consecutive ones into micro-batches, so that the rows of an
            optimizer step do not depend on `tokens_per_batch`; None: a micro-batch is one pack.
        shuffle: False keeps the order of the rows in every epoch.
        seed: seed of the order, 0 or more.
        tree: what the rows have in common, if `batching` is `shared`.
        rows_per_cluster: most rows that share a beginning in a micro-batch; None: no limit.

    Raises:
        SettingError: `batching` does not exist, a size is below 1, a row is longer than a pack, or a micro-batch is not
            a whole number of packs.
    """

    row_tokens: NDArray[np.int64]
    row_trained_tokens: NDArray[np.int64]
    batching: Batching = "packed"
    rows_per_batch: int = 32
    tokens_per_batch: int = 8192
    tokens_per_pack: int | None = None
    shuffle: bool = True
    seed: int = 2023
    tree: SharedTree = _NO_TREE
    rows_per_cluster: int | None = 2

    def __post_init__(self) -> None:
        if self.batching not in get_args(Batching):
            raise SettingError("batching", repr(self.batching), f"Use one of {', '.join(get_args(Batching))}.")
        if self.batch_size < 1:
            raise SettingError(self.size_name, str(self.batch_size), "Use 1 or more.")
        if self.tokens_per_batch % self._pack_tokens:
            found = f"{self.tokens_per_batch} is no multiple of the {self._pack_tokens} tokens of a pack"
            raise SettingError("tokens_per_batch", found, f"Use a multiple of {self._pack_tokens}.")
        longest = int(self.row_tokens.max(initial=0))
        if (self.rows_per_cluster or 1) < 1:
            raise SettingError("rows_per_cluster", str(self.rows_per_cluster), "Use 1 or more.")
        if self.packs and longest > self._pack_tokens:
            raise SettingError(
                "tokens_per_batch",
                f"{self._pack_tokens}, but row {int(self.row_tokens.argmax())} has {longest} tokens",
                f"Raise tokens_per_batch to {longest} or more, or lower max_tokens.",
            )

    @property
    def packs(self) -> bool:
        """Whether rows are concatenated."""
        return self.batching in PACKED

    @property
    def _pack_tokens(self) -> int:
        return self.tokens_per_pack or self.tokens_per_batch

    @property
    def packs_per_batch(self) -> int:
        """Packs that are joined into one micro-batch; 1 if not packed."""
        return self.tokens_per_batch // self._pack_tokens if self.packs else 1

    @property
    def size_name(self) -> str:
        """Name of the setting that limits a micro-batch."""
        return "tokens_per_batch" if self.packs else "rows_per_batch"

    @property
    def batch_size(self) -> int:
        """Value of the setting `size_name`."""
        return self.tokens_per_batch if self.packs else self.rows_per_batch

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of every epoch, over all ranks and without dummies."""
        return math.ceil(self._packs_per_epoch / self.packs_per_batch)

    @cached_property
    def _packs_per_epoch(self) -> int:
        """Packs, or padded micro-batches, of every epoch.

        Packed: the number that best-fit decreasing needs over all rows, plus 0.1 % so that windows also suffice. It
        depends on the lengths only. The last attempt of an epoch always reaches it; an epoch with fewer splits packs.
        Shared: the same with clusters in place of rows, and 0.5 %, because epochs have different clusters.
        """
        if self.batching == "shared":
            clusters = self._first_clusters
            packs = _packs_needed(clusters.tokens(self.row_tokens), self._pack_tokens)
            return min(len(clusters), packs + packs // 200)
        rows = len(self.row_tokens)
        if self.batching != "packed":
            return math.ceil(rows / self.rows_per_batch)
        packs = _packs_needed(self.row_tokens, self._pack_tokens)
        return min(rows, packs + packs // 1000)

    @property
    def shared_tokens(self) -> int:
        """Tokens of an epoch that are not computed again, in the clusters of `batches_per_epoch`; about as in all."""
        return int(self._first_clusters.shared.sum()) if self.batching == "shared" else 0

    def plan_epoch(self, epoch: int) -> EpochPlan:
        """Plan the micro-batches of an epoch, over all ranks."""
        return self._plan_packs(epoch).joined(self.packs_per_batch)

    def _plan_packs(self, epoch: int) -> EpochPlan:
        rng = np.random.default_rng([self.seed, epoch if self.shuffle else 0])
        rows = np.arange(len(self.row_tokens))
        if self.batching == "shared":
            return self._shared(rng)
        rows = rng.permutation(rows) if self.shuffle else rows
        plan = self._packed(rows, self.row_tokens, rng) if self.packs else self._padded(rows, rng)
        plan = plan.split_to(self._packs_per_epoch, rng)
        return plan.reordered(rng.permutation(len(plan)) if self.shuffle else _by_lowest(plan, np.arange(len(rows))))

    def _shared(self, rng: np.random.Generator) -> EpochPlan:
        """Draw clusters until their packs are few enough; at last take the clusters of the packs of every epoch."""
        clusters, plan = self._first_clusters, None
        for _ in range(_DRAWS if self.shuffle else 0):
            cut = self._cut(self.tree.shuffled(rng))
            drawn = self._halved(cut, self._halved_share, int(rng.integers(1 << 32)))
            packed = self._packed(rng.permutation(len(drawn)), drawn.tokens(self.row_tokens), rng)
            if len(packed) <= self._packs_per_epoch <= len(drawn):
                clusters, plan = drawn, packed
                break
        if plan is None:
            longest_first = np.argsort(-clusters.tokens(self.row_tokens), kind="stable")
            plan = _pack(longest_first, clusters.tokens(self.row_tokens), self._pack_tokens)
        plan = plan.split_to(self._packs_per_epoch, rng)
        lowest = np.minimum.reduceat(clusters.rows, clusters.bounds[:-1]) if len(clusters) else np.zeros(0, np.int64)
        return plan.reordered(rng.permutation(len(plan)) if self.shuffle else _by_lowest(plan, lowest)).rows_of(
            clusters
        )

    @cached_property
    def _halved_share(self) -> float:
        """The share of the clusters above half a pack to halve, so that the packs are the fewest."""

        def packs(share: float) -> int:
            halved = self._halved(self._first_cut, share, 0)
            return _packs_needed(halved.tokens(self.row_tokens), self._pack_tokens)

        return min(_HALVED_SHARES, key=packs)

    @cached_property
    def _first_clusters(self) -> Clusters:
        return self._halved(self._first_cut, self._halved_share, 0)

    @cached_property
    def _first_cut(self) -> Clusters:
        return self._cut(self.tree)

    def _cut(self, tree: SharedTree) -> Clusters:
        return cut_clusters(tree, self.row_tokens, self.rows_per_cluster, self._pack_tokens)

    def _halved(self, clusters: Clusters, share: float, seed: int) -> Clusters:
        rng = np.random.default_rng([self.seed, seed])
        return clusters.halved(share, self.row_tokens, self._pack_tokens // 2, rng)

    def _padded(self, rows: NDArray[np.int64], rng: np.random.Generator) -> EpochPlan:
        bounds = np.append(np.arange(0, len(rows), self.rows_per_batch), len(rows))
        if self.batching == "grouped":
            window = _WINDOW_BATCHES * self.rows_per_batch
            starts = range(window, len(rows), window)
            rows = np.concatenate(
                [self._longest_first(part, self.row_tokens, _BLUR, rng) for part in np.split(rows, starts)]
            )
        return EpochPlan(rows, bounds)

    def _packed(self, items: NDArray[np.int64], item_tokens: NDArray[np.int64], rng: np.random.Generator) -> EpochPlan:
        """Pack rows or clusters, within windows of their order."""
        budget, tokens = self._pack_tokens, int(item_tokens.sum())
        for window_packs, blur in _WINDOW_PACKS_AND_BLUR:
            windows = max(1, tokens // (window_packs * budget)) if window_packs else 1
            parts = [self._longest_first(part, item_tokens, blur, rng) for part in np.array_split(items, windows)]
            plans = [_pack(part, item_tokens, budget) for part in parts]
            plan = EpochPlan(
                np.concatenate([part.rows for part in plans]),
                _bounds(np.concatenate([np.diff(part.bounds) for part in plans])),
            )
            if len(plan) <= self._packs_per_epoch:
                break
        return plan

    def _longest_first(
        self, items: NDArray[np.int64], item_tokens: NDArray[np.int64], blur: float, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        blurred = item_tokens[items] * (1 - blur * rng.random(len(items)) if self.shuffle else 1.0)
        return items[np.argsort(-blurred, kind="stable")]


def pack_of_step(tokens_per_step: int, longest_row: int, rows_per_cluster: int | None = 1) -> int:
    """The smallest equal part of an optimizer step that has room for the longest row, in tokens.

    If rows share beginnings, it has room for a cluster of such rows, as far as the step has: in smaller packs they
    would share little. Of the published rows, 2,048 tokens hold 1.01 rows' tokens a slot, and 4,096 hold 1.26.

    Args:
        tokens_per_step: `data.tokens_per_step`.
        longest_row: `data.max_tokens`.
        rows_per_cluster: `data.rows_per_cluster`; None: no limit; 1: rows share nothing.

    Raises:
        SettingError: a row can be longer than a step.
    """
    cluster = min(tokens_per_step, longest_row * (rows_per_cluster or _UNLIMITED_CLUSTER))
    for parts in range(tokens_per_step // max(1, longest_row, cluster), 0, -1):
        if tokens_per_step % parts == 0:
            return tokens_per_step // parts
    found = f"{longest_row:,}, but an optimizer step has {tokens_per_step:,} tokens (data.tokens_per_step)"
    raise SettingError("data.max_tokens", found, "Lower it to data.tokens_per_step or less, or raise that.")


def _best_fit(lengths: list[int], capacity: int) -> list[int]:
    """Return the bin of each item by best fit: the fullest bin with enough room, or a new one.

    O(items × log(distinct free spaces)). The number of bins depends on the lengths only, not on ties.
    """
    bins_by_space: dict[int, list[int]] = {}
    spaces: list[int] = []  # the keys of bins_by_space, sorted
    chosen, opened = [], 0
    for length in lengths:
        at = bisect_left(spaces, length)
        if at == len(spaces):
            bin_number, space = opened, capacity
            opened += 1
        else:
            space = spaces[at]
            bin_number = bins_by_space[space].pop()
            if not bins_by_space[space]:
                del bins_by_space[space], spaces[at]
        chosen.append(bin_number)
        space -= length
        if space not in bins_by_space:
            bins_by_space[space] = []
            insort(spaces, space)
        bins_by_space[space].append(bin_number)
    return chosen


def _packs_needed(tokens: NDArray[np.int64], budget: int) -> int:
    """Return the number of packs of best-fit decreasing."""
    return max(_best_fit(np.sort(tokens)[::-1].tolist(), budget), default=-1) + 1


def _pack(items: NDArray[np.int64], tokens: NDArray[np.int64], budget: int) -> EpochPlan:
    packs = np.array(_best_fit(tokens[items].tolist(), budget), dtype=np.int64)
    return EpochPlan(items[np.argsort(packs, kind="stable")], _bounds(np.bincount(packs)))


def _bounds(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)])


def _by_lowest(plan: EpochPlan, row_of_item: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the order of the micro-batches by the lowest row in each."""
    return np.argsort(np.minimum.reduceat(row_of_item[plan.rows], plan.bounds[:-1]))
