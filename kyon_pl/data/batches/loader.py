"""Encoded rows and prompts as torch data sets, and the DataLoader of planned batches."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from kyon_pl.batch import Batch, PromptBatch
from kyon_pl.data.batches.collate import LabelBoundary, PlannedCollator, Row, first_label
from kyon_pl.data.batches.sampler import MicroBatch, PlannedBatchSampler
from kyon_pl.data.encoding.table import EncodedTable
from kyon_pl.data.encoding.tree import SharedTree
from kyon_pl.data.prompt import Context
from kyon_pl.errors import SettingError

Use = Literal["train", "validation", "test", "predict"]

_PARENT_CHECK_S = 0.5  # how often a loader worker looks for its parent


class TokenRows(Dataset[Any]):
    """Some rows of a table, as ids.

    Args:
        table: the encoded rows.
        numbers: (rows,) numbers of the rows in the table, in order.
    """

    def __init__(self, table: EncodedTable, numbers: NDArray[np.int64]) -> None:
        self.table = table
        self.numbers = numbers
        self._ids = table.encoded.select_columns(["input_ids", "seq_len", "masked"]).with_format("numpy")

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """(rows,) tokens of each row."""
        return self.table.tokens[self.numbers]

    @property
    def questions(self) -> NDArray[np.int64]:
        """(rows,) hash of each row's question."""
        return self.table.questions[self.numbers]

    @property
    def dialogues(self) -> NDArray[np.int64]:
        """(rows,) hash of each row's dialogue; 0: unknown."""
        return self.table.dialogues[self.numbers]

    def trained_tokens(self, boundary: LabelBoundary) -> NDArray[np.int64]:
        """(rows,) trained labels of each row."""
        untrained = first_label(self.table.seq_len, boundary) + self.table.masked_tokens
        return self.tokens - untrained[self.numbers]

    @property
    def tree(self) -> SharedTree:
        """What the contexts of the rows have in common."""
        return self.table.tree.of_rows(self.numbers, self.table.seq_len)

    def spread_indices(self, most: int | None, one_a_question: bool) -> list[int]:
        """Choose evenly spread rows, because rows of one character are usually adjacent.

        Args:
            most: number of rows to choose; None: all.
            one_a_question: choose only among the first rows of each question.
        """
        indices = np.arange(len(self))
        if one_a_question:
            indices = np.sort(np.unique(self.questions, return_index=True)[1])
        if most is not None and most < len(indices):
            indices = indices[np.arange(most) * len(indices) // most]
        return [*map(int, indices)]

    def __getitem__(self, index: int) -> Row:
        return self.read([index])[0]

    def __getitems__(self, micro_batch: MicroBatch) -> tuple[MicroBatch, list[Row]]:
        """Return a micro-batch with its rows; torch's loader passes what the batch sampler yields."""
        return micro_batch, self.read(list(micro_batch.row_numbers))

    def read(self, indices: list[int]) -> list[Row]:
        """Read rows by their index."""
        if not indices:
            return []
        columns = self._ids[self.numbers[indices]]
        return [
            {"input_ids": ids, "seq_len": int(seq_len), "masked": masked}
            for ids, seq_len, masked in zip(columns["input_ids"], columns["seq_len"], columns["masked"], strict=True)
        ]


@dataclass(frozen=True)
class Prompt:
    """A row without its reply.

    Attributes:
        input_ids: ids of the context, prefix included.
        text: the context, or the joined messages of a conversation; empty if the row has ids only.
        reference: the row's target; empty if it has none, or ids only.
        row_number: number of the row in its table.
        memories: the segments between system prompt and question; empty if the row has ids only.
    """

    input_ids: list[int]
    text: str
    reference: str
    row_number: int
    memories: tuple[str, ...]


class PromptRows(Dataset[Prompt | None]):
    """The prompts of every `step`-th row, a rank's share. All ranks have equally many items; the last one can be None.

    Args:
        rows: the rows.
        start: index of the first row, the rank.
        step: distance between rows, the number of ranks.
    """

    def __init__(self, rows: TokenRows, start: int = 0, step: int = 1) -> None:
        self.rows = rows
        self.indices = range(start, len(rows), step)
        self.length = -(-len(rows) // step)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Prompt | None:
        if index >= len(self.indices):
            return None
        row = self.rows[self.indices[index]]
        number = int(self.rows.numbers[self.indices[index]])
        texts = self.rows.table.rows.dataset[number]
        ids = row["input_ids"][: row["masked"][-1] if len(row["masked"]) else row["seq_len"]].tolist()
        memories = Context.parse(texts["context"]).middle
        return Prompt(ids, texts["context"], texts["target"] or "", number, memories)


def collate_prompts(items: list[Prompt | None]) -> PromptBatch:
    """Collate prompts without padding; generation pads them."""
    prompts = [prompt for prompt in items if prompt is not None]
    return PromptBatch(
        input_ids=[prompt.input_ids for prompt in prompts],
        prompts=[prompt.text for prompt in prompts],
        references=[prompt.reference for prompt in prompts],
        row_numbers=[prompt.row_number for prompt in prompts],
        memories=[prompt.memories for prompt in prompts],
    )


class PlannedLoader(DataLoader[Batch]):
    """A DataLoader with the state of its batch sampler, which Lightning saves in checkpoints."""

    batch_sampler: PlannedBatchSampler  # type: ignore[assignment]  # torch types what it yields as lists

    def state_dict(self) -> dict[str, Any]:
        """See `PlannedBatchSampler`."""
        return self.batch_sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `PlannedBatchSampler`."""
        self.batch_sampler.load_state_dict(state)

    def check_plan(self, *, world_size: int, accumulate_grad_batches: int, batches_per_epoch: int | float) -> None:
        """See `batch.PlannedSource`.

        Raises:
            SettingError: as `PlannedBatchSampler.check_plan`; or a Trainer got this loader without its data module, so
                that each epoch would repeat the first.
        """
        if self.batch_sampler.position is None:
            found = "a loader of planned batches without its data module, which follows the Trainer's position"
            raise SettingError("Trainer.fit", found, "Pass datamodule= instead of the loaders")
        self.batch_sampler.check_plan(
            world_size=world_size,
            accumulate_grad_batches=accumulate_grad_batches,
            batches_per_epoch=batches_per_epoch,
        )


def planned_loader(
    rows: TokenRows, sampler: PlannedBatchSampler, collate: PlannedCollator, *, workers: int, pin_memory: bool
) -> PlannedLoader:
    """Make a loader of planned batches; a function, because Lightning re-creates loaders by torch's own arguments.

    Args:
        rows: the rows.
        sampler: the micro-batches.
        collate: collates the rows of a micro-batch.
        workers: number of worker processes; 0: load in the calling process.
        pin_memory: whether to pin memory, for copies to a GPU.
    """
    return PlannedLoader(
        rows,
        batch_sampler=sampler,  # type: ignore[arg-type]
        collate_fn=collate,  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=ignore_stop_signals,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
    )


def ignore_stop_signals(worker: int) -> None:
    """Keep a loader worker alive when a terminal or a scheduler signals all processes of a run; a `worker_init_fn`.

    The training process needs batches to finish its step. SIGTERM from the training process still ends the worker:
    torch sends it at exit if an error left workers running, and then waits for them without a timeout. A worker whose
    training process was killed exits too; torch would look for it every 5 s only.

    Args:
        worker: the worker's number, unused.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere the sender of a signal is unknown
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_with_parent(parent: int) -> None:
    """Exit on SIGTERM from the parent process, and when it is gone."""
    while sys.platform == "linux":
        received = signal.sigtimedwait({signal.SIGTERM}, _PARENT_CHECK_S)
        if os.getppid() != parent or (received is not None and received.si_pid == parent):
            os._exit(128 + signal.SIGTERM)
