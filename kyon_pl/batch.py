"""The batch: the one thing that the data side hands to the training side."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch


@dataclass
class Batch:
    """One micro-batch. R rows (1 if packed), T tokens a row, all tensors int64.

    There is no attention mask: pads stand on the right, where causal attention never looks, and packed rows are told
    apart by their positions. Without a mask the fast kernels can be used.

    Attributes:
        input_ids: (R, T), right-padded with the pad id.
        labels: (R, T), the id at each trained position and -100 elsewhere, not shifted: the model shifts.
        position_ids: (R, T), restarting at each packed row; None if not packed.
        row_numbers: the places of the rows in the data set, in batch order; empty in a batch that only fills a
            rank's turn.
        tokens: real tokens, padding not counted.
        trained_tokens: labels other than -100.
        step_trained_tokens: trained tokens of the whole optimizer step that this batch is part of, over all ranks and
            accumulated micro-batches.
        trained_positions: (K,), places in the flattened (R * T) of the hidden states that predict a label, found here
            so that the device need not be waited for.
        cu_seqlens: (S + 1,), int32, where each packed row begins and where the last ends; None if not packed.
        max_seqlen: no packed row is longer, in tokens; the same number for all batches.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor | None
    row_numbers: tuple[int, ...]
    tokens: int
    trained_tokens: int
    step_trained_tokens: int
    trained_positions: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    max_seqlen: int | None = None

    def model_inputs(self) -> dict[str, torch.Tensor | int]:
        """What `ChatGLM2ForCausalLM.forward` takes of this batch."""
        names = (
            "input_ids",
            "labels",
            "position_ids",
            "trained_positions",
            "cu_seqlens",
            "max_seqlen",
        )
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; torch's loader calls this."""
        pinned = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(pinned, name, value.pin_memory())
        return pinned


@dataclass
class PromptBatch:
    """Prompts to reply to.

    Attributes:
        input_ids: the ids of each prompt, prefix included, not padded.
        prompts: the text of each prompt.
        references: the row's own target for each prompt.
        row_numbers: the places of the rows in the data set.
        memories: of each prompt, and its turns, as texts; none of a row that came as ids.
    """

    input_ids: list[list[int]]
    prompts: list[str]
    references: list[str]
    row_numbers: list[int]
    memories: list[tuple[str, ...]]


@runtime_checkable
class Workload(Protocol):
    """What training needs to know of the data before the first batch; `DialogueDataModule` knows it after its `setup`.

    Attributes:
        steps_per_epoch: optimizer steps of one epoch, the same in every epoch.
        batches_per_epoch: micro-batches of one device in an epoch, the same in every epoch.
        tokens_per_epoch: real tokens of one epoch, over all ranks.
    """

    @property
    def steps_per_epoch(self) -> int:
        """See the class."""

    @property
    def batches_per_epoch(self) -> int:
        """See the class."""

    @property
    def tokens_per_epoch(self) -> int:
        """See the class."""


@runtime_checkable
class IdSource(Protocol):
    """What holds token ids, whatever it is used for: in `validate` there is no work to plan."""

    def check_ids(self, vocabulary_size: int) -> None:
        """Raise a DataError if a row holds an id that a vocabulary of this size does not have."""


@runtime_checkable
class BatchSource(Workload, Protocol):
    """What training asks of the data before the first batch, or when something goes wrong."""

    def largest_batches(self, epochs: int) -> list[Batch]:
        """The training batches of that many epochs that need the most memory, on the CPU; none if none is used."""

    def place(self, row_number: int) -> str:
        """Where a person finds the row of that number in a batch: file and line."""

    def smaller_batch_settings(self, accumulate_grad_batches: int = 1) -> str:
        """The settings to change for training batches of half the size, in words."""


@runtime_checkable
class RowSource(Protocol):
    """What a person is shown of the data beside the curves."""

    def held_out_prompts(
        self, use: Literal["validation", "test"], most: int | None, one_a_question: bool
    ) -> PromptBatch:
        """Held-out rows as prompts, evenly spread, of these this rank's share; there may be none.

        Args:
            use: which rows.
            most: how many over all ranks; None: all.
            one_a_question: leave out rows whose question an earlier one has.
        """

    def shown_rows(self, count: int) -> str:
        """The first training rows as the model sees them, as plain text: what is masked and what is trained."""
