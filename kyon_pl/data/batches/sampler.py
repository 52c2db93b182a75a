"""Planned micro-batches by rank and position, and the largest of them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from kyon_pl.data.batches.plan import Batching, BatchPlanner, EpochPlan
from kyon_pl.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one rank computes at once; small, because it travels to loader workers.

    Attributes:
        row_numbers: places of the rows in the data set; empty in a dummy, which only fills a rank's turn.
        step_trained_tokens: trained tokens of the whole optimizer step, over all ranks and accumulated micro-batches.
    """

    row_numbers: tuple[int, ...]
    step_trained_tokens: int


class PlannedBatchSampler(Sampler[MicroBatch]):
    """One rank's share of the plan, a `batch_sampler` for torch's `DataLoader`.

    Optimizer step s of an epoch is made of the micro-batches s*W*A to (s+1)*W*A of the plan, W ranks and A accumulated
    micro-batches; the last step may be shorter. At most W-1 dummies fill up the last turn, so ranks have equal counts.

    Args:
        planner: plans the epochs.
        rank: this process's number, `trainer.global_rank`.
        world_size: number of processes, `trainer.world_size`.
        accumulate_grad_batches: micro-batches of one rank in an optimizer step; 1 where nothing is trained.
        limit_batches: as `trainer.limit_train_batches`: an int counts micro-batches of a rank, a float is a share.
        position: tells the optimizer steps done so far, asked whenever an iteration starts; what was prefetched does
            not matter. Without it the attribute `step` is the position: count it up to be able to save it.
    """

    def __init__(
        self,
        planner: BatchPlanner,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulate_grad_batches: int = 1,
        limit_batches: int | float | None = None,
        position: Callable[[], int] | None = None,
    ) -> None:
        self.planner = planner
        self.rank = rank
        self.world_size = world_size
        self.accumulate_grad_batches = accumulate_grad_batches
        self.limit_batches = limit_batches
        self.position = position
        self.step = 0

    def __len__(self) -> int:
        """Micro-batches of this rank in a full epoch: Lightning applies its limit to this number itself."""
        return math.ceil(self.planner.batches_per_epoch / self.world_size)

    @property
    def batches_used(self) -> int:
        """Micro-batches of this rank in an epoch, the limit applied as Lightning does it."""
        if isinstance(self.limit_batches, float):
            return int(len(self) * self.limit_batches)
        return len(self) if self.limit_batches is None else min(len(self), self.limit_batches)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of every epoch, the limit applied; times the epochs, the length of a schedule."""
        return math.ceil(self.batches_used / self.accumulate_grad_batches)

    def __iter__(self) -> Iterator[MicroBatch]:
        """From the current position to the end of its epoch."""
        if not self.steps_per_epoch:
            return
        epoch, steps_done = divmod(self._steps_done(), self.steps_per_epoch)
        plan = self.planner.plan_epoch(epoch)
        step_trained_tokens = self._step_trained_tokens(plan)
        for turn in range(steps_done * self.accumulate_grad_batches, self.batches_used):
            row_numbers = plan.row_numbers(turn * self.world_size + self.rank)
            yield MicroBatch(row_numbers, step_trained_tokens[turn // self.accumulate_grad_batches])

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, unless the position lies in it already; for loops without a trainer."""
        if self.step // max(1, self.steps_per_epoch) != epoch:
            self.step = epoch * self.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """The position in optimizer steps, and what it was counted in; plain numbers and words."""
        return {"optimizer_step": self._steps_done(), **self._counted_in()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; no row is read. A trainer's own count, if there is one, goes before it.

        Raises:
            CheckpointError: the position was counted in other rows, batches, or micro-batches a step.
        """
        for name, value in self._counted_in().items():
            if state.get(name) != value:
                raise CheckpointError(
                    f"position in the data, {name}",
                    f"{state.get(name)} in the checkpoint, {value} now",
                    "Resume with the data and the settings of the saved run, or start a new run from its adapter.",
                )
        self.step = state["optimizer_step"]

    def _steps_done(self) -> int:
        return self.step if self.position is None else self.position()

    def _step_trained_tokens(self, plan: EpochPlan) -> list[int]:
        used = plan.sums(self.planner.row_trained_tokens)[: self.batches_used * self.world_size]
        starts = np.arange(0, len(used), self.world_size * self.accumulate_grad_batches)
        sums: list[int] = np.add.reduceat(used, starts).tolist()
        return sums

    def _counted_in(self) -> dict[str, Any]:
        planner = self.planner
        return {
            "rows": len(planner.row_tokens),
            "row_tokens_crc32": zlib.crc32(planner.row_tokens.astype("<i8").tobytes()),
            "batching": planner.batching,
            planner.size_name: planner.batch_size,
            "shuffle": planner.shuffle,
            "seed": planner.seed,
            "micro_batches_per_step": self.world_size * self.accumulate_grad_batches,
            "steps_per_epoch": self.steps_per_epoch,
        }


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


def largest_batches(planner: BatchPlanner, batches: int, epochs: int) -> list[MicroBatch]:
    """The micro-batch with the most slots, and the one with the most trained tokens where that is another one.

    Which of the two needs more memory depends on the model.

    Args:
        planner: plans the epochs.
        batches: micro-batches of an epoch that are used, over all ranks.
        epochs: how many to look at. Packed batches are all of one size; there one epoch stands for all.
    """
    looked_at = range(1 if planner.batching == "packed" else epochs)
    loads = [load for epoch in looked_at for load in _largest_of(planner, planner.plan_epoch(epoch), batches)]
    chosen = dict.fromkeys((max(loads), max(loads, key=_by_trained_tokens)))
    return [MicroBatch(load.row_numbers, load.trained_tokens) for load in chosen]


def _largest_of(planner: BatchPlanner, plan: EpochPlan, batches: int) -> list[Load]:
    longest = np.maximum.reduceat(planner.row_tokens[plan.rows], plan.bounds[:-1])
    slots = longest * np.diff(plan.bounds)
    if planner.batching == "packed":
        slots[:] = planner.tokens_per_batch
    slots, trained = slots[:batches], plan.sums(planner.row_trained_tokens)[:batches]
    indices = np.lexsort((trained, slots))[-1], np.lexsort((slots, trained))[-1]
    return [Load(int(slots[index]), int(trained[index]), plan.row_numbers(int(index))) for index in indices]


def _by_trained_tokens(load: Load) -> tuple[int, int]:
    return load.trained_tokens, load.slots


def smaller_batch_settings(batching: Batching, rows: int, tokens: int, longest_row: int, accumulate: int) -> str:
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
