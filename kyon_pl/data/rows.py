"""Some rows of a table as torch data sets, read from the cache when a batch asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from kyon_pl.batch import PromptBatch
from kyon_pl.data.batching import MicroBatch
from kyon_pl.data.collate import LabelBoundary, Row, first_label
from kyon_pl.data.prompt import Context
from kyon_pl.data.table import EncodedTable

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
