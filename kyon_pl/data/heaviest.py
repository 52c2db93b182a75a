"""The micro-batches of a run that need the most memory, found in its plan before any of them is read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kyon_pl.data.batching import MicroBatch
from kyon_pl.data.plan import Batching, BatchPlanner, EpochPlan


class Load(NamedTuple):
    """What a micro-batch weighs.

    Attributes:
        slots: its tokens, padding included; the layers keep activations of each.
        trained_tokens: the head makes logits of each, a whole vocabulary.
        row_numbers: its rows.
    """

    slots: int
    trained_tokens: int
    row_numbers: tuple[int, ...]


def heaviest(planner: BatchPlanner, batches: int, epochs: int) -> list[MicroBatch]:
    """The micro-batch with the most slots, and the one with the most trained tokens where that is another one.

    Which of the two needs more memory depends on the model.

    Args:
        planner: plans the epochs.
        batches: micro-batches of an epoch that are used, over all ranks.
        epochs: how many to look at. Packed batches are all of one size; there one epoch stands for all.
    """
    looked_at = range(1 if planner.batching == "packed" else epochs)
    loads = [load for epoch in looked_at for load in _heaviest_of(planner, planner.plan_epoch(epoch), batches)]
    chosen = dict.fromkeys((max(loads), max(loads, key=_by_trained_tokens)))
    return [MicroBatch(load.row_numbers, load.trained_tokens) for load in chosen]


def _heaviest_of(planner: BatchPlanner, plan: EpochPlan, batches: int) -> list[Load]:
    longest = np.maximum.reduceat(planner.row_tokens[plan.rows], plan.bounds[:-1])
    slots = longest * np.diff(plan.bounds)
    if planner.batching == "packed":
        slots[:] = planner.tokens_per_batch
    slots, trained = slots[:batches], plan.sums(planner.row_trained_tokens)[:batches]
    indices = np.lexsort((trained, slots))[-1], np.lexsort((slots, trained))[-1]
    return [Load(int(slots[index]), int(trained[index]), plan.row_numbers(int(index))) for index in indices]


def _by_trained_tokens(load: Load) -> tuple[int, int]:
    return load.trained_tokens, load.slots


def lighter_settings(batching: Batching, rows: int, tokens: int, longest_row: int, accumulate: int) -> str:
    """The settings to change for batches of half the size, in words.

    Args:
        batching: `data.batching`.
        rows: `data.rows_per_batch`.
        tokens: `data.tokens_per_batch`.
        longest_row: `data.max_tokens`, or the longest row where that sets no limit.
        accumulate: `trainer.accumulate_grad_batches`.
    """
    if batching == "packed":
        smaller = f"data.tokens_per_batch from {tokens} to {tokens // 2}"
        smaller += f" and data.max_tokens from {longest_row} to {tokens // 2}" if longest_row > tokens // 2 else ""
    elif rows > 1:
        smaller = f"data.rows_per_batch from {rows} to {rows // 2}"
    else:
        return f"data.max_tokens from {longest_row} to {longest_row // 2}"
    return f"{smaller}, and raise trainer.accumulate_grad_batches from {accumulate} to {accumulate * 2} to train alike"
