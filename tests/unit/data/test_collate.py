from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from kyon_pl.batch import Batch
from kyon_pl.data.batches.collate import DialogueCollator, PlannedCollator
from kyon_pl.data.batches.sampler import MicroBatch
from kyon_pl.errors import SettingError

GOLDEN = Path(os.environ.get("KYON_GOLDEN_DIR", Path(__file__).parents[2] / "golden")) / "chatglm2_tiny"
SHORT = {"input_ids": [11, 12, 13], "seq_len": 1}
LONG = {"input_ids": [21, 22, 0, 24, 2], "seq_len": 3}
SHORT_TOO = {"input_ids": [31, 32, 33], "seq_len": 2}


def as_lists(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    assert all(value.dtype == torch.int64 for value in batch.values())
    return {name: value.tolist() for name, value in batch.items()}


def test_seed_is_the_original_collator_to_the_letter() -> None:
    trajectory = json.loads((GOLDEN / "trajectory.json").read_text())
    batch = DialogueCollator(label_boundary="seed")(trajectory["rows"][: trajectory["batch_size"]])
    assert as_lists(batch) == trajectory["first_batch"]


def test_target_trains_what_follows_the_context_and_masks_padding() -> None:
    batch = DialogueCollator(pad_token_id=0)([SHORT, LONG, SHORT_TOO])
    # a pad or end-of-sequence id within a row is a token like any other
    assert as_lists(batch) == {
        "input_ids": [[21, 22, 0, 24, 2], [11, 12, 13, 0, 0], [31, 32, 33, 0, 0]],
        "labels": [[-100, -100, -100, 24, 2], [-100, 12, 13, -100, -100], [-100, -100, 33, -100, -100]],
        "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]],
    }


def test_an_unknown_boundary_is_refused() -> None:
    with pytest.raises(SettingError, match=r"data\.label_boundary: there is no 'last'.*target, seed"):
        DialogueCollator(label_boundary="last")  # type: ignore[arg-type]


def collate(rows: list[dict[str, Any]], boundary: str = "target", **settings: Any) -> Batch:
    collator = DialogueCollator(label_boundary=boundary)  # type: ignore[arg-type]
    return PlannedCollator(collator, **settings)((MicroBatch(tuple(range(100, 100 + len(rows))), 77), rows))


def predicted(batch: Batch) -> list[int]:
    """The ids that the hidden states at the trained positions have to predict."""
    assert batch.trained_positions is not None
    return batch.input_ids.flatten()[batch.trained_positions + 1].tolist()


def shifted_labels(batch: Batch) -> list[int]:
    """The labels that a model which shifts within each row of the batch gets to see."""
    labels = batch.labels[:, 1:]
    return labels[labels != -100].tolist()


def test_padded_rows_become_a_batch_that_knows_itself() -> None:
    batch = collate([SHORT, LONG, SHORT_TOO])
    assert batch.row_numbers == (101, 100, 102)
    assert (batch.tokens, batch.trained_tokens, batch.step_trained_tokens) == (11, 5, 77)
    assert predicted(batch) == shifted_labels(batch) == [24, 2, 12, 13, 33]
    assert batch.position_ids is batch.cu_seqlens is None


def test_seed_counts_only_labels_that_can_be_predicted() -> None:
    batch = collate([SHORT, LONG], "seed")
    assert batch.labels[1, 0] == 11  # as in the original, and as there the shift drops it
    assert predicted(batch) == shifted_labels(batch) == [0, 24, 2, 12, 13]
    assert batch.trained_tokens == 5


def test_packed_rows_stand_side_by_side_and_padding_for_itself() -> None:
    batch = collate([SHORT, LONG], tokens_per_batch=14, longest_row=5)
    assert batch.input_ids.tolist() == [[11, 12, 13, 21, 22, 0, 24, 2, 0, 0, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[-100, 12, 13, -100, -100, -100, 24, 2, *[-100] * 6]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]]
    assert batch.cu_seqlens is not None
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.cu_seqlens.tolist() == [0, 3, 8, 13, 14]
    assert batch.max_seqlen == 5
    assert (batch.row_numbers, batch.tokens, batch.trained_tokens) == ((100, 101), 8, 4)
    assert predicted(batch) == shifted_labels(batch) == [12, 13, 24, 2]


def test_no_packed_row_predicts_the_first_token_of_the_next() -> None:
    batch = collate([LONG, SHORT], "seed", tokens_per_batch=8)
    assert predicted(batch) == shifted_labels(batch) == [0, 24, 2, 12, 13]
    assert batch.cu_seqlens is not None
    assert batch.cu_seqlens.tolist() == [0, 5, 8]


@pytest.mark.parametrize("settings", [{}, {"boundary": "seed"}, {"tokens_per_batch": 16, "longest_row": 6}])
def test_a_batch_without_rows_only_fills_a_turn(settings: dict[str, Any]) -> None:
    batch = collate([], **settings)
    assert batch.row_numbers == ()
    assert (batch.tokens, batch.trained_tokens, batch.step_trained_tokens) == (0, 0, 77)
    assert batch.input_ids.count_nonzero() == 0
    assert batch.input_ids.shape == batch.labels.shape
    assert set(batch.labels.flatten().tolist()) == {-100}
    assert batch.trained_positions is not None
    assert batch.trained_positions.shape == (0,)
    if "tokens_per_batch" in settings:  # the same shapes as any other batch, for compiled kernels
        assert batch.input_ids.shape == (1, 16)


@pytest.mark.parametrize("settings", [{}, {"tokens_per_batch": 16, "longest_row": 8}])
def test_only_a_loader_worker_moves_a_batch_into_shared_memory(
    settings: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There it fails in the worker's own thread, whose errors torch raises again in the training process."""

    def shared(batch: Batch) -> set[bool]:
        return {value.is_shared() for value in vars(batch).values() if isinstance(value, torch.Tensor)}

    assert shared(collate([SHORT, LONG], **settings)) == {False}
    monkeypatch.setattr("kyon_pl.data.batches.collate.get_worker_info", object)
    assert shared(collate([SHORT, LONG], **settings)) == {True}
