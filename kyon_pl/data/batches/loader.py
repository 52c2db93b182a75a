"""Encoded rows as torch data sets, and the loader of planned batches."""

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
from kyon_pl.data.prompt import Context


def let_signals_pass(worker: int) -> None:
    """Keep a loader worker alive when a terminal or a scheduler signals all processes of a run to stop.

    The training process still needs batches for the step that it finishes. It alone may end its workers: where an error
    leaves them running, it sends each one SIGTERM at its own end and then waits for it, without a limit.

    Args:
        worker: its number, which torch gives to such a function.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere nothing tells who has sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_with_parent(parent: int) -> None:
    while sys.platform == "linux":
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(128 + signal.SIGTERM)


Use = Literal["train", "validation", "test", "predict"]


class TokenRows(Dataset[Any]):
    """The ids of some rows.

    Args:
        table: all rows.
        numbers: (rows,) which of them, in which order.
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
    def seq_len(self) -> NDArray[np.int64]:
        """(rows,) tokens of each row before the first trained one."""
        return self.table.seq_len[self.numbers]

    @property
    def questions(self) -> NDArray[np.int64]:
        """(rows,) a number for each row's question."""
        return self.table.questions[self.numbers]

    @property
    def dialogues(self) -> NDArray[np.int64]:
        """(rows,) a number for each row's dialogue; 0: not known."""
        return self.table.dialogues[self.numbers]

    def trained_tokens(self, boundary: LabelBoundary) -> NDArray[np.int64]:
        """(rows,) labels of each row that the model learns to predict."""
        return self.tokens - first_label(self.seq_len, boundary) - self.table.masked_tokens[self.numbers]

    def spread_places(self, most: int | None, one_a_question: bool) -> list[int]:
        """The places of some of these rows, evenly spread: rows of one character stand together.

        Args:
            most: how many; None: all.
            one_a_question: of each question the first row alone.
        """
        places = np.arange(len(self))
        if one_a_question:
            places = np.sort(np.unique(self.questions, return_index=True)[1])
        if most is not None and most < len(places):
            places = places[np.arange(most) * len(places) // most]
        return [*map(int, places)]

    def __getitem__(self, place: int) -> Row:
        return self.read([place])[0]

    def __getitems__(self, micro_batch: MicroBatch) -> tuple[MicroBatch, list[Row]]:
        """A micro-batch of the plan with its rows; torch's loader passes on whatever its batch sampler yields."""
        return micro_batch, self.read(list(micro_batch.row_numbers))

    def read(self, places: list[int]) -> list[Row]:
        """Rows by their place among these rows."""
        if not places:
            return []
        columns = self._ids[self.numbers[places]]
        return [
            {"input_ids": ids, "seq_len": int(seq_len), "masked": masked}
            for ids, seq_len, masked in zip(columns["input_ids"], columns["seq_len"], columns["masked"], strict=True)
        ]


@dataclass(frozen=True)
class Prompt:
    """A row without its reply.

    Attributes:
        input_ids: of the context, prefix included.
        text: the context, of a conversation its messages joined likewise; empty if the row came as ids.
        reference: the row's own target; empty if it has none or came as ids.
        row_number: its place in the table.
        memories: what stands between system prompt and question; none if the row came as ids.
    """

    input_ids: list[int]
    text: str
    reference: str
    row_number: int
    memories: tuple[str, ...]


class PromptRows(Dataset[Prompt | None]):
    """The prompts of some rows, shared out over ranks: each has as many turns, and at the last one perhaps no prompt.

    Args:
        rows: whose.
        start: the first of them.
        step: and every how many; so that ranks share them out.
    """

    def __init__(self, rows: TokenRows, start: int = 0, step: int = 1) -> None:
        self.rows = rows
        self.places = range(start, len(rows), step)
        self.turns = -(-len(rows) // step)

    def __len__(self) -> int:
        return self.turns

    def __getitem__(self, place: int) -> Prompt | None:
        if place >= len(self.places):
            return None
        row = self.rows[self.places[place]]
        number = int(self.rows.numbers[self.places[place]])
        texts = self.rows.table.rows.dataset[number]
        ids = row["input_ids"][: row["masked"][-1] if len(row["masked"]) else row["seq_len"]].tolist()
        memories = Context.parse(texts["context"]).middle
        return Prompt(ids, texts["context"], texts["target"] or "", number, memories)


def collate_prompts(turns: list[Prompt | None]) -> PromptBatch:
    """A batch of prompts, each of its own length: generation pads them as it needs."""
    prompts = [prompt for prompt in turns if prompt is not None]
    return PromptBatch(
        input_ids=[prompt.input_ids for prompt in prompts],
        prompts=[prompt.text for prompt in prompts],
        references=[prompt.reference for prompt in prompts],
        row_numbers=[prompt.row_number for prompt in prompts],
        memories=[prompt.memories for prompt in prompts],
    )


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
