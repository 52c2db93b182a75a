"""Rows of ids to the tensors of a batch. Labels go by position; ids are never compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from kyon_pl.batch import Batch
from kyon_pl.data.batches.sampler import MicroBatch
from kyon_pl.errors import SettingError

LabelBoundary = Literal["target", "seed"]
Row = Mapping[str, Any]
"""`input_ids`: ids of context, target and end of sequence; `seq_len`: how many of them are context. `masked`, if it is
there: start and end of each stretch behind `seq_len` that carries no labels, one after the other."""

IGNORED = -100
_DUMMY_TOKENS = 8


def first_label(seq_len: ArrayLike, boundary: LabelBoundary) -> NDArray[np.int64]:
    """The place in a row of the first label that can be learned; never 0, where nothing stands before it to predict it.

    Args:
        seq_len: number of context ids, of one row or of many.
        boundary: `target`: the first id of the target; `seed`: the last of the context, as in the original.
    """
    place: NDArray[np.int64] = np.maximum(1, np.asarray(seq_len) - (boundary == "seed"))
    return place


def labels_of(row: Row, first: int) -> NDArray[np.int64]:
    """(tokens,) the labels of a row that is trained from the place `first` on, but for its masked stretches."""
    labels = np.array(row["input_ids"], dtype=np.int64)
    labels[:first] = IGNORED
    for start, end in np.reshape(row.get("masked", ()), (-1, 2)).astype(np.int64):
        labels[start:end] = IGNORED
    return labels


def predicting(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places of the hidden states that predict a label: those in front of one.

    Args:
        labels: (R, T).

    Returns:
        (K,) places in the flattened (R * T), rising.
    """
    return np.flatnonzero(np.pad(labels[:, 1:] != IGNORED, ((0, 0), (0, 1))))


class DialogueCollator:
    """Pads rows to the longest; the original's `data_collator`.

    Rows come out by length, the longest first, equal ones in their order.

    Args:
        pad_token_id: fills up on the right.
        label_boundary: `target` trains the target and makes an `attention_mask`. `seed` is the original's collator
            exactly: it trains the last token of the context as well, and gives the keys `input_ids` and `labels` only.

    Raises:
        SettingError: there is no such boundary.
    """

    def __init__(self, pad_token_id: int = 0, label_boundary: LabelBoundary = "target") -> None:
        if label_boundary not in get_args(LabelBoundary):
            found = f"there is no {label_boundary!r}"
            raise SettingError("data.label_boundary", found, f"Choose one of: {', '.join(get_args(LabelBoundary))}.")
        self.pad_token_id = pad_token_id
        self.label_boundary = label_boundary

    def __call__(self, features: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Collate rows.

        Args:
            features: one or more rows.

        Returns:
            `input_ids`, `labels` and, unless the boundary is `seed`, `attention_mask`; (rows, longest row) int64.
        """
        rows = [features[i] for i in longest_first(features)]
        shape = len(rows), len(rows[0]["input_ids"])
        ids, labels = np.full(shape, self.pad_token_id), np.full(shape, IGNORED)
        for place, row in enumerate(rows):
            length = len(row["input_ids"])
            # not `first_label`: the original labels even the very first token, and its model then drops that label
            first = row["seq_len"] - (self.label_boundary == "seed")
            ids[place, :length] = row["input_ids"]
            labels[place, :length] = labels_of(row, first)
        batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        if self.label_boundary == "target":
            lengths = np.array([len(row["input_ids"]) for row in rows])
            batch["attention_mask"] = torch.from_numpy((np.arange(shape[1]) < lengths[:, None]).astype(np.int64))
        return batch


def longest_first(rows: Sequence[Row]) -> list[int]:
    """The places of rows by length, the longest first, equal ones in their order."""
    return sorted(range(len(rows)), key=lambda place: -len(rows[place]["input_ids"]))


@dataclass(frozen=True)
class PlannedCollator:
    """Makes the batch of a planned micro-batch; the `collate_fn` of the loaders.

    Attributes:
        collator: pads, and knows pad id and boundary.
        tokens_per_batch: T of a packed batch, the same for all, so that compiled kernels fit them all; None pads.
        longest_row: no packed row is longer than this; None: than `tokens_per_batch`.
    """

    collator: DialogueCollator
    tokens_per_batch: int | None = None
    longest_row: int | None = None

    def __call__(self, planned: tuple[MicroBatch, list[Row]]) -> Batch:
        """Collate.

        Args:
            planned: a micro-batch of the plan, with its rows in that order. One without rows only fills a rank's turn:
                it becomes a batch of pad tokens without a label.
        """
        micro_batch, rows = planned
        if self.tokens_per_batch is not None:
            return self._pack(micro_batch, rows, self.tokens_per_batch)
        return self._pad(micro_batch, rows) if rows else self._dummy(micro_batch)

    def _pad(self, micro_batch: MicroBatch, rows: list[Row]) -> Batch:
        tensors = self.collator(rows)
        return Batch(
            input_ids=tensors["input_ids"],
            labels=tensors["labels"],
            position_ids=None,
            row_numbers=tuple(micro_batch.row_numbers[place] for place in longest_first(rows)),
            **self._counts(micro_batch, rows, tensors["labels"].numpy()),
        )

    def _pack(self, micro_batch: MicroBatch, rows: list[Row], total: int) -> Batch:
        """Rows one behind the other. What is left over is cut into rows of pads, so that no real row sees one."""
        longest = min(self.longest_row or total, total)
        lengths = [len(row["input_ids"]) for row in rows]
        left = total - sum(lengths)
        pads = [longest] * (left // longest) + ([left % longest] if left % longest else [])
        ends = np.cumsum([0, *lengths, *pads])
        ids, labels = np.full(total, self.collator.pad_token_id), np.full(total, IGNORED)
        for row, start, end in zip(rows, ends, ends[1:], strict=False):
            ids[start:end] = row["input_ids"]
            labels[start:end] = labels_of(row, int(first_label(row["seq_len"], self.collator.label_boundary)))
        positions = np.concatenate([np.arange(length) for length in (*lengths, *pads)])
        return Batch(
            input_ids=torch.from_numpy(ids)[None],
            labels=torch.from_numpy(labels)[None],
            position_ids=torch.from_numpy(positions)[None],
            row_numbers=micro_batch.row_numbers,
            cu_seqlens=torch.from_numpy(ends.astype(np.int32)),
            max_seqlen=longest,
            **self._counts(micro_batch, rows, labels[None]),
        )

    def _dummy(self, micro_batch: MicroBatch) -> Batch:
        ids = torch.full((1, _DUMMY_TOKENS), self.collator.pad_token_id)
        return Batch(
            input_ids=ids,
            labels=torch.full_like(ids, IGNORED),
            position_ids=None,
            row_numbers=(),
            **self._counts(micro_batch, [], np.full((1, _DUMMY_TOKENS), IGNORED)),
        )

    def _counts(self, micro_batch: MicroBatch, rows: list[Row], labels: NDArray[np.int64]) -> dict[str, Any]:
        positions = predicting(labels)
        return {
            "tokens": sum(len(row["input_ids"]) for row in rows),
            "trained_tokens": len(positions),
            "step_trained_tokens": micro_batch.step_trained_tokens,
            "trained_positions": torch.from_numpy(positions),
        }
