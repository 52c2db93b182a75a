"""The loader of planned batches."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from kyon_pl.batch import Batch
from kyon_pl.data.batching import PlannedBatchSampler
from kyon_pl.data.collate import PlannedCollator
from kyon_pl.data.rows import TokenRows
from kyon_pl.data.workers import let_signals_pass


class PlannedLoader(DataLoader[Batch]):
    """A loader whose position is its batch sampler's: Lightning saves and restores it with a checkpoint."""

    batch_sampler: PlannedBatchSampler  # type: ignore[assignment]  # torch types what it yields as lists

    def state_dict(self) -> dict[str, Any]:
        """The position; see `PlannedBatchSampler`."""
        return self.batch_sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; see `PlannedBatchSampler`."""
        self.batch_sampler.load_state_dict(state)


def planned_loader(
    rows: TokenRows, sampler: PlannedBatchSampler, collate: PlannedCollator, *, workers: int, pin_memory: bool
) -> PlannedLoader:
    """A loader of rows; a function, since Lightning makes a loader anew by the arguments of torch's class.

    Args:
        rows: that batches are made of.
        sampler: which rows, in which order.
        collate: makes a batch of them.
        workers: processes that read ahead; 0: the process that asks.
        pin_memory: for copies to a GPU.
    """
    return PlannedLoader(
        rows,
        batch_sampler=sampler,  # type: ignore[arg-type]
        collate_fn=collate,  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=let_signals_pass,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
    )
