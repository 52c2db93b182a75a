"""The batch sampler of planned micro-batches, with a position that can be saved; and the largest micro-batches."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from kyon_pl.data.batches.plan import PACKED, Batching, BatchPlanner, EpochPlan
from kyon_pl.errors import CheckpointError, SettingError


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One micro-batch of one rank; small, because it is sent to loader workers.

    Attributes:
        row_numbers: indices of the rows in the data set; empty in a dummy, which only equalizes the ranks' counts.
        step_trained_tokens: trained tokens of the whole optimizer step, over all ranks and accumulated micro-batches.
        shared: tokens that each row shares with the row before it; empty if nothing is shared.
    """

    row_numbers: tuple[int, ...]
    step_trained_tokens: int
    shared: tuple[int, ...] = ()


class PlannedBatchSampler(Sampler[MicroBatch]):
    """One rank's share of the plan, a `batch_sampler` for torch's `DataLoader`.

    With W ranks and A accumulated micro-batches, optimizer step s of an epoch has the micro-batches s*W*A to (s+1)*W*A
    of the plan; the last step can be shorter. Up to W-1 dummies at the end give all ranks equally many micro-batches.

    Args:
        planner: plans the epochs.
        rank: `trainer.global_rank`.
        world_size: `trainer.world_size`, the number of processes.
        accumulate_grad_batches: micro-batches of one rank in an optimizer step; 1 if nothing is trained.
        limit_batches: as `trainer.limit_train_batches`: an int is a number of micro-batches of a rank, a float a share.
        position: returns the number of optimizer steps done; called when an iteration starts, so prefetched batches do
            not count. None: the attribute `step` is the position; a loop without a trainer increments it.
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
        """Micro-batches of this rank in a full epoch; Lightning applies its limit to this number itself."""
        return math.ceil(self.planner.batches_per_epoch / self.world_size)

    @property
    def batches_used(self) -> int:
        """Micro-batches of this rank in an epoch, with the limit as Lightning applies it."""
        if isinstance(self.limit_batches, float):
            return int(len(self) * self.limit_batches)
        return len(self) if self.limit_batches is None else min(len(self), self.limit_batches)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of every epoch, with the limit."""
        return math.ceil(self.batches_used / self.accumulate_grad_batches)

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield the micro-batches from the current position to the end of its epoch."""
        if not self.steps_per_epoch:
            return
        epoch, steps_done = divmod(self._steps_done(), self.steps_per_epoch)
        plan = self.planner.plan_epoch(epoch)
        step_trained_tokens = self._step_trained_tokens(plan)
        for index in range(steps_done * self.accumulate_grad_batches, self.batches_used):
            number = index * self.world_size + self.rank
            trained_tokens = step_trained_tokens[index // self.accumulate_grad_batches]
            yield MicroBatch(plan.row_numbers(number), trained_tokens, plan.shared_tokens(number))

    def check_plan(self, *, world_size: int, accumulate_grad_batches: int, batches_per_epoch: int | float) -> None:
        """Compare the plan with the numbers that are in use; see `batch.PlannedSource`.

        Raises:
            SettingError: one of them has changed since the batches were planned.
        """
        check_unchanged(
            {
                "trainer.devices": (self.world_size, world_size),
                "trainer.accumulate_grad_batches": (self.accumulate_grad_batches, accumulate_grad_batches),
                "trainer.limit_train_batches": (self.batches_used, batches_per_epoch),
            }
        )

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, unless the position is already in it; for loops without a trainer."""
        if self.step // max(1, self.steps_per_epoch) != epoch:
            self.step = epoch * self.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the position in optimizer steps, and the properties of the plan that it depends on."""
        return {"optimizer_step": self._steps_done(), **self._plan_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position without reading rows. With the argument `position`, that function is used instead.

        Raises:
            CheckpointError: the position belongs to other rows, batches, or micro-batches per step.
        """
        for name, value in self._plan_state().items():
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

    def _plan_state(self) -> dict[str, Any]:
        planner = self.planner
        micro_batches = self.world_size * self.accumulate_grad_batches
        size = {planner.size_name: planner.batch_size, "micro_batches_per_step": micro_batches}
        if planner.tokens_per_pack:  # the step does not depend on how it is cut into micro-batches
            packs = micro_batches * planner.packs_per_batch
            size = {"tokens_per_pack": planner.tokens_per_pack, "packs_per_step": packs}
        sharing = {"rows_per_cluster": planner.rows_per_cluster, "tree_crc32": planner.tree.crc32}
        return {
            "rows": len(planner.row_tokens),
            "row_tokens_crc32": zlib.crc32(planner.row_tokens.astype("<i8").tobytes()),
            "batching": planner.batching,
            **size,
            "shuffle": planner.shuffle,
            "seed": planner.seed,
            "steps_per_epoch": self.steps_per_epoch,
            **(sharing if planner.batching == "shared" else {}),
        }


def check_unchanged(values: Mapping[str, tuple[object, object]]) -> None:
    """Check that no setting has changed since the batches were planned.

    Args:
        values: by setting, the value when the batches were planned and the value now.

    Raises:
        SettingError: it names the first setting that has.
    """
    for setting, (planned, now) in values.items():
        if planned != now:
            found = f"{planned} when the batches of the run were planned, and {now} now"
            fix = "Set it before the run starts, and leave out callbacks and code that change it later"
            raise SettingError(setting, found, fix)


class _BatchSize(NamedTuple):
    slots: int  # tokens with padding; the layers keep activations of each
    keys: int  # more than slots if rows share beginnings; attention keeps keys and values of each
    trained_tokens: int  # the head computes logits over the vocabulary for each
    row_numbers: tuple[int, ...]
    shared: tuple[int, ...]


def largest_batches(planner: BatchPlanner, batches: int, epochs: int) -> list[MicroBatch]:
    """Return the micro-batch with the most slots and, if it differs, the one with the most trained tokens.

    Of micro-batches with as many slots, it is the one whose rows have the most tokens, shared ones included.

    Which of the two needs more memory depends on the model.

    Args:
        planner: plans the epochs.
        batches: number of micro-batches of an epoch that are used, over all ranks.
        epochs: number of epochs to search. Packed batches have equal sizes, so only the first epoch is searched.
    """
    searched = range(1 if planner.packs else epochs)
    sizes = [size for epoch in searched for size in _largest_in(planner, planner.plan_epoch(epoch), batches)]
    most_trained = max(sizes, key=lambda size: (size.trained_tokens, size.slots))
    largest = dict.fromkeys((max(sizes), most_trained))
    return [MicroBatch(size.row_numbers, size.trained_tokens, size.shared) for size in largest]


def _largest_in(planner: BatchPlanner, plan: EpochPlan, batches: int) -> list[_BatchSize]:
    longest = np.maximum.reduceat(planner.row_tokens[plan.rows], plan.bounds[:-1])
    slots = longest * np.diff(plan.bounds)
    if planner.packs:
        slots[:] = planner.tokens_per_batch
    slots, trained = slots[:batches], plan.sums(planner.row_trained_tokens)[:batches]
    keys = slots + [sum(plan.shared_tokens(index)) for index in range(len(slots))]
    indices = np.lexsort((trained, keys, slots))[-1], np.lexsort((keys, slots, trained))[-1]
    return [
        _BatchSize(int(slots[i]), int(keys[i]), int(trained[i]), plan.row_numbers(int(i)), plan.shared_tokens(int(i)))
        for i in indices
    ]


def smaller_batch_settings(batching: Batching, rows: int, tokens: int, longest_row: int, accumulate: int) -> str:
    """Return advice on which settings halve the batch size.

    Args:
        batching: `data.batching`.
        rows: `data.rows_per_batch`.
        tokens: `data.tokens_per_batch`.
        longest_row: `data.max_tokens`, or the longest row if there is no limit.
        accumulate: `trainer.accumulate_grad_batches`.
    """
    if batching in PACKED:
        smaller = f"data.tokens_per_batch from {tokens} to {tokens // 2}"
        smaller += f" and data.max_tokens from {longest_row} to {tokens // 2}" if longest_row > tokens // 2 else ""
    elif rows > 1:
        smaller = f"data.rows_per_batch from {rows} to {rows // 2}"
    else:
        return f"data.max_tokens from {longest_row} to {longest_row // 2}"
    raised = f"trainer.accumulate_grad_batches from {accumulate} to {accumulate * 2}"
    return f"{smaller}, and raise {raised} to keep the effective batch size"
