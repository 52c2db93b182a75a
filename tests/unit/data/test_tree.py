"""The tree of shared beginnings and the clusters that are cut from it, against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kyon_pl.data.batches.clusters import cut_clusters
from kyon_pl.data.batches.plan import BatchPlanner
from kyon_pl.data.encoding.tree import SharedTree, find_shared, read_tree, write_tree

Row = tuple[list[int], int]  # ids, and how many of them are context


@st.composite
def row_lists(draw: st.DrawFn) -> list[Row]:
    ids = st.integers(0, draw(st.sampled_from([1, 2, 100_000])))
    rows = draw(st.lists(st.lists(ids, min_size=2, max_size=14), min_size=1, max_size=12))
    return [(row, draw(st.integers(1, len(row) - 1))) for row in rows]


def common(a: Row, b: Row) -> int:
    """The ids that two contexts have in common."""
    count = 0
    for one, other in zip(a[0][: a[1]], b[0][: b[1]], strict=False):
        if one != other:
            break
        count += 1
    return count


def arrays(rows: list[Row]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Ids, lengths and contexts."""
    ids = np.concatenate([row for row, _ in rows]).astype(np.int32)
    return ids, np.array([len(row) for row, _ in rows]), np.array([context for _, context in rows])


def tree_of(rows: list[Row]) -> SharedTree:
    ids, lengths, contexts = arrays(rows)
    return find_shared(ids, lengths.cumsum() - lengths, contexts)


def assert_true_of(tree: SharedTree, rows: list[Row]) -> None:
    assert sorted(tree.rows.tolist()) == list(range(len(rows)))
    assert tree.shared[0] == 0
    for place in range(1, len(rows)):
        assert tree.shared[place] == common(rows[tree.rows[place - 1]], rows[tree.rows[place]])


@given(rows=row_lists(), seed=st.integers(0, 99))
def test_neighbours_share_what_is_said(rows: list[Row], seed: int) -> None:
    """In sorted order, in another depth-first order, and for some of the rows, which may be repeated."""
    tree, rng = tree_of(rows), np.random.default_rng(seed)
    assert_true_of(tree, rows)
    contexts = [row[:context] for row, context in (rows[number] for number in tree.rows)]
    assert contexts == sorted(contexts)
    shuffled = tree.shuffled(rng)
    assert_true_of(shuffled, rows)
    assert sorted(shuffled.shared) == sorted(tree.shared)
    numbers = rng.integers(0, len(rows), rng.integers(1, len(rows) + 3))
    for of in (tree, shuffled):
        some = of.of_rows(numbers, arrays(rows)[2])
        assert_true_of(some, [rows[number] for number in numbers])


def best_saving(tree: SharedTree, tokens: NDArray[np.int64], limit: int, budget: int) -> int:
    """The most tokens that clusters can save, tried one by one."""
    best = [0]
    for end in range(1, len(tokens) + 1):
        found = []
        for start in range(max(0, end - limit), end):
            saved = int(tree.shared[start + 1 : end].sum())
            if tokens[tree.rows[start:end]].sum() - saved <= budget:
                found.append(best[start] + saved)
        best.append(max(found))
    return best[-1]


@given(rows=row_lists(), limit=st.sampled_from([1, 2, 3, None]), room=st.integers(0, 30))
def test_clusters_save_the_most(rows: list[Row], limit: int | None, room: int) -> None:
    tree, tokens = tree_of(rows), arrays(rows)[1]
    budget = int(tokens.max()) + room
    clusters = cut_clusters(tree, tokens, limit, budget)
    saved = int(tokens.sum() - clusters.tokens(tokens).sum())
    assert saved == best_saving(tree, tokens, limit or len(rows), budget)
    assert clusters.tokens(tokens).max() <= budget
    assert np.diff(clusters.bounds).max() <= (limit or len(rows))
    assert (clusters.shared[clusters.bounds[:-1]] == 0).all()
    halved = clusters.halved(1.0, tokens, 1, np.random.default_rng(0))
    assert sorted(halved.rows.tolist()) == list(range(len(rows)))
    assert len(halved) >= len(clusters)


def family(roles: int = 30, rows: int = 40) -> BatchPlanner:
    """Rows of roles that begin with 300 common ids, of 400 to 700 each."""
    rng = np.random.default_rng(0)
    shared = np.where(np.arange(roles * rows) % rows, 300, 0)
    tokens = rng.integers(400, 700, roles * rows)
    tree = SharedTree(np.arange(roles * rows), shared)
    return BatchPlanner(
        row_tokens=tokens,
        row_trained_tokens=tokens // 10,
        batching="shared",
        tokens_per_batch=4096,
        tree=tree,
        rows_per_cluster=4,
    )


def test_epochs_differ_and_packs_are_filled() -> None:
    planner = family()
    plans = [planner.plan_epoch(epoch) for epoch in range(3)]
    slots = planner.batches_per_epoch * planner.tokens_per_batch
    assert planner.row_tokens.sum() / slots > 1.45  # of 1.69 with clusters of four and no padding
    packs = [{frozenset(plan.row_numbers(index)) for index in range(len(plan))} for plan in plans]
    assert not packs[0] & packs[1]
    clusters = [{(row, plan.rows[i - 1]) for i, row in enumerate(plan.rows) if plan.shared[i]} for plan in plans]
    assert len(clusters[0] & clusters[1]) < len(clusters[0]) / 4  # rows have other neighbours


def test_a_tree_is_kept_and_a_damaged_one_is_not_read(tmp_path: Path) -> None:
    tree, file = tree_of([([3, 4, 5], 2), ([3, 4, 6], 2)]), tmp_path / "rows.tree.npz"
    assert read_tree(file, 2) is None
    write_tree(tree, file)
    kept = read_tree(file, 2)
    assert kept is not None
    assert kept.crc32 == tree.crc32
    assert read_tree(file, 3) is None
    whole = file.read_bytes()
    for damaged in (whole[:-30], b"", whole[:150] + bytes([whole[150] ^ 1]) + whole[151:]):
        file.write_bytes(damaged)
        again = read_tree(file, 2)
        assert again is None or again.crc32 == tree.crc32  # a byte that no number depends on
    assert [path.name for path in tmp_path.iterdir()] == ["rows.tree.npz"]
