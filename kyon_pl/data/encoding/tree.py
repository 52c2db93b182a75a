"""The tree of shared beginnings: how many leading tokens the contexts of rows have in common.

Rows of a role begin with the same system prompt, and often with the same memories. In depth-first order of this tree,
each row is next to the rows with which it shares the most.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pyarrow import ListArray

_TOKENS_PER_KEY = 4  # of 16 bits each, in an int64; two of 32 bits for a larger vocabulary


@dataclass(frozen=True, eq=False)
class SharedTree:
    """Rows in depth-first order, and the number of leading tokens that neighbours share.

    Two rows share the smallest number of `shared` between them. It is at most the length of either context: targets
    are not shared.

    Attributes:
        rows: (rows,) int64, row numbers in depth-first order.
        shared: (rows,) int64, tokens that each row shares with the row before it; 0 for the first row.
    """

    rows: NDArray[np.int64]
    shared: NDArray[np.int64]

    @cached_property
    def crc32(self) -> int:
        """CRC-32 of order and shared tokens."""
        return zlib.crc32(np.stack([self.rows, self.shared]).astype("<i8").tobytes())

    def of_rows(self, numbers: NDArray[np.int64], contexts: NDArray[np.int64]) -> SharedTree:
        """Return the tree of some rows, which may occur more than once.

        Args:
            numbers: (rows,) numbers of rows of this tree; the new tree numbers them by their index here.
            contexts: (rows of this tree,) context length of each row number, in tokens.
        """
        if not len(numbers):
            return SharedTree(np.zeros(0, np.int64), np.zeros(0, np.int64))
        places = np.empty(int(self.rows.max()) + 1, np.int64)
        places[self.rows] = np.arange(len(self.rows))
        rows = np.argsort(places[numbers], kind="stable")
        chosen = places[numbers][rows]
        repeated = np.diff(chosen, prepend=-1) == 0
        # the minimum over the rows skipped since the previous one; a segment is (previous, chosen]
        starts = np.unique(chosen)
        minimum = np.minimum.reduceat(self.shared[: starts[-1] + 1], np.concatenate([[0], starts[:-1] + 1]))
        shared = minimum[np.searchsorted(starts, chosen)]
        shared[repeated] = contexts[numbers[rows[repeated]]]
        shared[0] = 0
        return SharedTree(rows, shared)

    def shuffled(self, rng: np.random.Generator) -> SharedTree:
        """Return the same tree in another depth-first order: the children of each node are permuted."""
        if not len(self.rows):
            return self
        ranks = rng.permutation(len(self.rows)).tolist()
        following = [-1] * len(self.rows)  # linked lists over the places of the rows
        shared = [0] * len(self.rows)
        # a subtree is (rank, first place, last place); an open node is (depth, its closed children)
        subtree = (-1, -1, -1)
        opened: list[tuple[int, list[tuple[int, int, int]]]] = []
        for place, depth in enumerate([*self.shared.tolist()[1:], -1]):
            subtree = (ranks[place], place, place)
            while opened and opened[-1][0] > depth:
                closed, children = opened.pop()
                children.append(subtree)
                rank = children[0][0]
                children.sort()
                for (_, _, last), (_, first, _) in pairwise(children):
                    following[last] = first
                    shared[first] = closed
                subtree = (rank, children[0][1], children[-1][2])
            if opened and opened[-1][0] == depth:
                opened[-1][1].append(subtree)
            else:
                opened.append((depth, [subtree]))
        order, place = [], subtree[1]
        while place >= 0:
            order.append(place)
            place = following[place]
        places = np.array(order, dtype=np.int64)
        return SharedTree(self.rows[places], np.array(shared, dtype=np.int64)[places])


def find_shared(ids: NDArray[np.int32], starts: NDArray[np.int64], contexts: NDArray[np.int64]) -> SharedTree:
    """Sort rows by the ids of their contexts, and count what neighbours share.

    A radix sort from the first ids on, several ids at a time: rows leave it as soon as no other row has the same ids so
    far. Memory is a few numbers a row; the ids may be memory-mapped.

    Args:
        ids: (tokens,) ids of all rows, each row in one piece, 0 or more.
        starts: (rows,) index of each row's first id.
        contexts: (rows,) leading ids of each row that may be shared.
    """
    tokens_per_key = _TOKENS_PER_KEY if int(ids.max(initial=0)) < (1 << 16) - 1 else _TOKENS_PER_KEY // 2
    bits = 64 // tokens_per_key
    order = np.arange(len(starts))
    shared = np.zeros(len(starts), np.int64)
    active = np.arange(len(starts))  # places in `order` of rows that have company
    group = np.zeros(len(starts), np.int64)  # of the active places, ascending
    depth = 0
    while len(active):
        rows = order[active]
        keys = _keys(ids, starts[rows], contexts[rows] - depth, depth, tokens_per_key, bits)
        if np.any((np.diff(group) == 0) & (np.diff(keys) != 0)):
            sorting = np.lexsort((keys, group))
            rows, keys = rows[sorting], keys[sorting]
            order[active] = rows
        together = np.concatenate([[False], np.diff(group) == 0])
        same = together & np.concatenate([[False], keys[1:] == keys[:-1]])
        shared[active[together]] += _common(keys, together, tokens_per_key, bits)
        # a row goes on with a neighbour of the same ids, unless its context ended before
        goes_on = (same | np.concatenate([same[1:], [False]])) & (contexts[rows] >= depth + tokens_per_key)
        group = np.cumsum(~same)[goes_on]
        active = active[goes_on]
        depth += tokens_per_key
    return SharedTree(order, shared)


def _keys(
    ids: NDArray[np.int32],
    starts: NDArray[np.int64],
    left: NDArray[np.int64],
    depth: int,
    tokens_per_key: int,
    bits: int,
) -> NDArray[np.uint64]:
    """Return (rows,) the next ids of each row plus 1 as one number, the first id highest; 0 after the context's end."""
    keys = np.zeros(len(starts), np.uint64)
    for offset in range(tokens_per_key):
        inside = left > offset
        digit = ids[np.where(inside, starts + depth + offset, 0)].astype(np.uint64) + np.uint64(1)
        keys = (keys << np.uint64(bits)) | np.where(inside, digit, np.uint64(0))
    return keys


def _common(keys: NDArray[np.uint64], together: NDArray[np.bool_], tokens_per_key: int, bits: int) -> NDArray[np.int64]:
    """Return, for each row that was together with the one before it, the leading ids that their keys have in common."""
    after = np.flatnonzero(together)
    differing = keys[after] ^ keys[after - 1]
    common = np.zeros(len(after), np.int64)
    open_ = np.ones(len(after), bool)
    for offset in range(tokens_per_key):
        shift = np.uint64(bits * (tokens_per_key - 1 - offset))
        # equal digits count, unless they are 0: both contexts have ended
        open_ &= (differing >> shift == 0) & ((keys[after] >> shift) & np.uint64((1 << bits) - 1) != 0)
        common += open_
    return common


@contextmanager
def contiguous_ids(chunks: Sequence[ListArray], folder: Path | None) -> Iterator[NDArray[np.int32]]:
    """Yield the ids of all chunks in one piece, memory-mapped from a temporary file, so that memory stays flat.

    Args:
        chunks: lists of int32 ids.
        folder: where the file is made; None: the system's folder for temporary files.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        for chunk in chunks:
            file.write(chunk.flatten().to_numpy().astype("<i4", copy=False).tobytes())
        file.flush()
        yield np.memmap(file, "<i4", "r") if file.tell() else np.zeros(0, np.int32)


def read_tree(file: Path, rows: int) -> SharedTree | None:
    """Read a tree that was written by `write_tree`; None if there is no such file, or it is damaged or of other rows.

    Args:
        file: where it may be.
        rows: number of rows it must have.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            tree = SharedTree(arrays["rows"], arrays["shared"])
    except (OSError, BadZipFile, EOFError, ValueError, KeyError):
        return None
    return tree if tree.rows.shape == tree.shared.shape == (rows,) else None


def write_tree(tree: SharedTree, file: Path) -> None:
    """Write a tree; several processes may write the same one at once."""
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as unfinished:
        np.savez(unfinished, rows=tree.rows, shared=tree.shared)
    Path(unfinished.name).replace(file)
