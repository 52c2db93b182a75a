"""The batch, and the protocols between data and training."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch


@dataclass
class Batch:
    """One micro-batch of R rows (1 if packed) with T tokens each; tensors are int64.

    There is no attention mask, so that the fast kernels can be used: padding is on the right, where causal attention
    does not look, and packed rows are separated by their positions.

    In a batch with shared beginnings, a row lays down only the tokens that it does not share with the row before it.
    `key_index` lists the places of all K tokens of all rows, row after row, so a place can occur several times.

    Attributes:
        input_ids: (R, T), right-padded with the pad id.
        labels: (R, T), or (1, K) if beginnings are shared: the id at each trained token and -100 elsewhere, not
            shifted: the model shifts them.
        position_ids: (R, T), the place of each token in its own row; None if not packed.
        row_numbers: indices of the rows in the data set, in batch order; empty in a batch that only fills up a rank.
        tokens: number of tokens without padding.
        trained_tokens: number of labels other than -100.
        computed_tokens: number of tokens in `input_ids` without padding; less than `tokens` if beginnings are shared.
        step_trained_tokens: trained tokens of the whole optimizer step, over all ranks and micro-batches.
        trained_positions: (N,), indices into the flattened `labels` of the tokens before a label; computed on the CPU
            so that the model need not synchronize with the device.
        cu_seqlens: (S + 1,), int32, start of each packed row in `input_ids` and end of the last; None if not packed.
        max_seqlen: upper bound of the length of packed rows, in tokens; equal for all batches.
        key_index: (K,), index into the flattened `input_ids` of each token of each row; None if nothing is shared.
        cu_seqlens_k: (S + 1,), int32, start of each row in `key_index` and end of the last; None if nothing is shared.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor | None
    row_numbers: tuple[int, ...]
    tokens: int
    trained_tokens: int
    computed_tokens: int
    step_trained_tokens: int
    trained_positions: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    max_seqlen: int | None = None
    key_index: torch.Tensor | None = None
    cu_seqlens_k: torch.Tensor | None = None

    def model_inputs(self) -> dict[str, torch.Tensor | int]:
        """The arguments of `ChatGLM2ForCausalLM.forward`."""
        names = ["input_ids", "labels", "position_ids", "trained_positions", "cu_seqlens", "max_seqlen"]
        names += ["key_index", "cu_seqlens_k"]
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory; torch's DataLoader calls this."""
        pinned = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(pinned, name, value.pin_memory())
        return pinned

    def share_memory(self) -> Batch:
        """Move the tensors into shared memory, in place.

        Raises:
            RuntimeError: there is no room in it.
        """
        for value in vars(self).values():
            if isinstance(value, torch.Tensor):
                value.share_memory_()  # type: ignore[no-untyped-call]
        return self


@dataclass
class PromptBatch:
    """Prompts to reply to.

    Attributes:
        input_ids: ids of each prompt, with `[gMASK] sop`, not padded.
        prompts: text of each prompt.
        references: target of each row.
        row_numbers: indices of the rows in the data set.
        memories: texts of memories and turns in each prompt; empty for rows of ids.
    """

    input_ids: list[list[int]]
    prompts: list[str]
    references: list[str]
    row_numbers: list[int]
    memories: list[tuple[str, ...]]


@runtime_checkable
class Workload(Protocol):
    """The size of the training data; `DialogueDataModule` has it after `setup`.

    Attributes:
        steps_per_epoch: optimizer steps per epoch, equal for all epochs.
        batches_per_epoch: micro-batches per epoch and device, equal for all epochs.
        tokens_per_epoch: tokens per epoch without padding, over all ranks.
        computed_tokens_per_epoch: those of them that are computed; fewer if rows share their beginnings.
        training_rows: rows per epoch, over all ranks.
        validation_rows: rows of a validation, over all ranks.
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

    @property
    def computed_tokens_per_epoch(self) -> int:
        """See the class."""

    @property
    def training_rows(self) -> int:
        """See the class."""

    @property
    def validation_rows(self) -> int:
        """See the class."""


@runtime_checkable
class PlannedSource(Protocol):
    """Training batches that were planned for certain numbers of a Trainer: a data module, or its loader."""

    def check_plan(self, *, world_size: int, accumulate_grad_batches: int, batches_per_epoch: int | float) -> None:
        """Raise a SettingError if the batches were planned with other numbers than these.

        Args:
            world_size: number of processes.
            accumulate_grad_batches: micro-batches of an optimizer step on one device.
            batches_per_epoch: micro-batches of an epoch on one device.
        """


@runtime_checkable
class IdSource(Protocol):
    """Data with token ids, in training and in evaluation."""

    def check_ids(self, vocabulary_size: int) -> None:
        """Raise a DataError if a row has an id that is not below `vocabulary_size`."""


@runtime_checkable
class BatchSource(Workload, Protocol):
    """Training data for guards: the largest batches, and the places of rows."""

    def largest_batches(self, epochs: int) -> list[Batch]:
        """The batches of that many epochs that need the most memory, on the CPU; may be empty."""

    def place(self, row_number: int) -> str:
        """File and line of the row with that number."""

    def smaller_batch_settings(self, accumulate_grad_batches: int = 1) -> str:
        """A text that names the settings for training batches of half the size."""


@runtime_checkable
class RowSource(Protocol):
    """Data that can show rows to the user."""

    def held_out_prompts(
        self, use: Literal["validation", "test"], most: int | None, one_a_question: bool
    ) -> PromptBatch:
        """This rank's share of evenly spread held-out rows, as prompts; may be empty.

        Args:
            use: which rows.
            most: maximum number over all ranks; None: all.
            one_a_question: omit rows with the question of an earlier row.
        """

    def shown_rows(self, count: int) -> str:
        """The first training rows as text that shows what is masked and what is trained."""
