"""Collation of encoded rows to batches. Labels are set by position, never by comparing ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import get_worker_info

from kyon_pl.batch import Batch
from kyon_pl.data.batches.sampler import MicroBatch
from kyon_pl.errors import no_such_choice

LabelBoundary = Literal["target", "seed"]
Row = Mapping[str, Any]
"""`input_ids`: ids of context, target and end of sequence; `seq_len`: number of context ids; `masked`, optional: starts
and ends, alternating, of the stretches after `seq_len` without labels."""

IGNORED = -100
"""The label of a token that is not trained; `ignore_index` of torch's cross-entropy."""

_DUMMY_TOKENS = 8


def first_label(seq_len: ArrayLike, boundary: LabelBoundary) -> NDArray[np.int64]:
    """Return the index of the first trained label in a row; at least 1, because no token predicts the first one.

    Args:
        seq_len: number of context ids, of one row or of many.
        boundary: `target`: the first id of the target; `seed`: the last of the context, as in the original.
    """
    index: NDArray[np.int64] = np.maximum(1, np.asarray(seq_len) - (boundary == "seed"))
    return index


def labels_of(row: Row, first: int) -> NDArray[np.int64]:
    """Return (tokens,) the labels of a row that is trained from index `first`, except its masked stretches."""
    labels = np.array(row["input_ids"], dtype=np.int64)
    labels[:first] = IGNORED
    for start, end in np.reshape(row.get("masked", ()), (-1, 2)).astype(np.int64):
        labels[start:end] = IGNORED
    return labels


def trained_positions(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions of the hidden states that predict a label, each one before its label.

    Args:
        labels: (R, T).

    Returns:
        (K,) ascending indices into the flattened (R * T).
    """
    return np.flatnonzero(np.pad(labels[:, 1:] != IGNORED, ((0, 0), (0, 1))))


class DialogueCollator:
    """Pads rows to the longest, sorted by length, longest first (stable); the original's `data_collator`.

    Args:
        pad_token_id: id of the padding on the right.
        label_boundary: `target` trains the target and returns an `attention_mask`. `seed` is identical to the
            original's collator: it also trains the last token of the context, and returns no mask.

    Raises:
        SettingError: the boundary does not exist.
    """

    def __init__(self, pad_token_id: int = 0, label_boundary: LabelBoundary = "target") -> None:
        if label_boundary not in get_args(LabelBoundary):
            raise no_such_choice("data.label_boundary", label_boundary, get_args(LabelBoundary))
        self.pad_token_id = pad_token_id
        self.label_boundary = label_boundary

    def __call__(self, features: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Collate rows.

        Args:
            features: one or more rows.

        Returns:
            `input_ids`, `labels` and, with the boundary `target`, `attention_mask`; (rows, longest row) int64.
        """
        rows = [features[i] for i in longest_first(features)]
        shape = len(rows), len(rows[0]["input_ids"])
        ids, labels = np.full(shape, self.pad_token_id), np.full(shape, IGNORED)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            # not `first_label`: the original can label the first token, and its model then drops that label
            first = row["seq_len"] - (self.label_boundary == "seed")
            ids[index, :length] = row["input_ids"]
            labels[index, :length] = labels_of(row, first)
        batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        if self.label_boundary == "target":
            lengths = np.array([len(row["input_ids"]) for row in rows])
            batch["attention_mask"] = torch.from_numpy((np.arange(shape[1]) < lengths[:, None]).astype(np.int64))
        return batch


def longest_first(rows: Sequence[Row]) -> list[int]:
    """Return the indices of rows sorted by length, longest first; the sort is stable."""
    return sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))


@dataclass(frozen=True)
class PlannedCollator:
    """Collates a planned micro-batch to a `Batch`; the `collate_fn` of the loaders.

    Attributes:
        collator: pads rows, and holds pad id and label boundary.
        tokens_per_batch: T of a packed batch, the same for all batches, so that kernels are compiled once; None: pad.
        longest_row: upper bound of a packed row's length; None: `tokens_per_batch`.
        shares: whether rows of a packed batch share their beginnings as planned.
    """

    collator: DialogueCollator
    tokens_per_batch: int | None = None
    longest_row: int | None = None
    shares: bool = False

    def __call__(self, planned: tuple[MicroBatch, list[Row]]) -> Batch:
        """Collate a micro-batch.

        Args:
            planned: a micro-batch of the plan and its rows in the same order. A dummy without rows becomes a batch of
                pad tokens without labels.

        Raises:
            RuntimeError: this is a loader worker, and shared memory has no room for the batch. The thread that passes
                batches on only prints such an error, and the training process would wait forever.
        """
        micro_batch, rows = planned
        if self.tokens_per_batch is not None:
            batch = self._pack(micro_batch, rows, self.tokens_per_batch)
        else:
            batch = self._pad(micro_batch, rows)
        return batch if get_worker_info() is None else batch.share_memory()

    def _pad(self, micro_batch: MicroBatch, rows: list[Row]) -> Batch:
        if rows:
            tensors = self.collator(rows)
            ids, labels = tensors["input_ids"], tensors["labels"]
        else:
            ids = torch.full((1, _DUMMY_TOKENS), self.collator.pad_token_id)
            labels = torch.full_like(ids, IGNORED)
        return Batch(
            input_ids=ids,
            labels=labels,
            position_ids=None,
            row_numbers=tuple(micro_batch.row_numbers[index] for index in longest_first(rows)),
            **self._counts(micro_batch, rows, labels.numpy()),
        )

    def _pack(self, micro_batch: MicroBatch, rows: list[Row], total: int) -> Batch:
        """Concatenate rows. The padding is split into rows of its own, so that no real row attends to it."""
        longest = min(self.longest_row or total, total)
        shared = micro_batch.shared if self.shares else (0,) * len(rows)
        lengths = [len(row["input_ids"]) for row in rows]
        laid_down = [length - common for length, common in zip(lengths, shared, strict=True)]
        full, rest = divmod(total - sum(laid_down), longest)
        pads = [longest] * full + [rest] * (rest > 0)
        starts = np.cumsum([0, *laid_down, *pads])  # of rows in the ids
        key_starts = np.cumsum([0, *lengths, *pads])  # of rows in the labels
        ids, positions = np.full(total, self.collator.pad_token_id), np.zeros(total, np.int64)
        labels, key_index = np.full(key_starts[-1], IGNORED), np.zeros(key_starts[-1], np.int64)
        for number, common in enumerate((*shared, *(0 for _ in pads))):
            start, end = starts[number : number + 2]
            key_start, key_end = key_starts[number : number + 2]
            positions[start:end] = np.arange(common, common + end - start)
            before = key_starts[number - 1]
            key_index[key_start : key_start + common] = key_index[before : before + common]
            key_index[key_start + common : key_end] = np.arange(start, end)
            if number < len(rows):
                row = rows[number]
                ids[start:end] = row["input_ids"][common:]
                first = int(first_label(row["seq_len"], self.collator.label_boundary))
                labels[key_start:key_end] = labels_of(row, first)
        sharing = torch.from_numpy(key_index), torch.from_numpy(key_starts.astype(np.int32))
        return Batch(
            input_ids=torch.from_numpy(ids)[None],
            labels=torch.from_numpy(labels)[None],
            position_ids=torch.from_numpy(positions)[None],
            row_numbers=micro_batch.row_numbers,
            cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
            max_seqlen=longest,
            key_index=sharing[0] if self.shares else None,
            cu_seqlens_k=sharing[1] if self.shares else None,
            **self._counts(micro_batch, rows, labels[None]),
        )

    def _counts(self, micro_batch: MicroBatch, rows: list[Row], labels: NDArray[np.int64]) -> dict[str, Any]:
        positions = trained_positions(labels)
        tokens = sum(len(row["input_ids"]) for row in rows)
        return {
            "tokens": tokens,
            "trained_tokens": len(positions),
            "computed_tokens": tokens - sum(micro_batch.shared if self.shares else ()),
            "step_trained_tokens": micro_batch.step_trained_tokens,
            "trained_positions": torch.from_numpy(positions),
        }
