"""A packed row is the row alone: the same loss and the same adapter gradients, whatever lies beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from one_step import LONGEST_ROW, SEED, random_row, tiny_base, with_adapter
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from kyon_pl.batch import Batch
from kyon_pl.data import DialogueCollator
from kyon_pl.data.batches.collate import PlannedCollator
from kyon_pl.data.batches.sampler import MicroBatch

ROWS = 5
SAME = 1e-5


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    torch.manual_seed(SEED)
    return [random_row() for _ in range(ROWS)]


@pytest.fixture(params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest) -> PeftModel:
    torch.manual_seed(SEED)
    return with_adapter(tiny_base(request.param))


def collate(rows: list[dict[str, Any]], tokens_per_batch: int | None = None) -> Batch:
    planned = MicroBatch(tuple(range(len(rows))), step_trained_tokens=0)
    return PlannedCollator(DialogueCollator(), tokens_per_batch, LONGEST_ROW)((planned, rows))


def row_losses(model: PeftModel, batch: Batch) -> list[Tensor]:
    """The summed loss of each row, in the order of `row_numbers`, from the logits and the labels alone."""
    logits = model(**batch.model_inputs(), use_cache=False).logits
    nll = cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="none")
    nll = torch.cat([torch.zeros(len(logits), 1), nll.view(len(logits), -1)], dim=1)
    if batch.cu_seqlens is None:
        return list(nll.sum(dim=1))
    return [part.sum() for part in nll[0].split(batch.cu_seqlens.diff().tolist())][: len(batch.row_numbers)]


def gradient(model: PeftModel, loss: Tensor) -> Tensor:
    """Of all adapter parameters, as one vector."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, trained, retain_graph=True)])


def distance(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


def test_packed_rows_are_the_rows_alone(model: PeftModel, rows: list[dict[str, Any]]) -> None:
    """Beside others and before padding; and a pack whose rows see each other is the control."""
    alone = [row_losses(model, collate([row]))[0] for row in rows]
    batch = collate(rows, tokens_per_batch=ROWS * LONGEST_ROW)
    assert len(batch.cu_seqlens) > ROWS + 1  # the rest is padding
    packed = row_losses(model, batch)
    for found, expected in zip(packed, alone, strict=True):
        assert distance(found, expected) <= SAME
        assert distance(gradient(model, found), gradient(model, expected)) <= SAME

    batch.position_ids = torch.arange(batch.input_ids.numel()).unsqueeze(0)  # as one long row
    leaking = row_losses(model, batch)
    assert distance(leaking[0], alone[0]) <= SAME  # the first row has nothing before it
    for found, expected in zip(leaking[1:], alone[1:], strict=True):
        assert distance(found, expected) > 100 * SAME
        assert distance(gradient(model, found), gradient(model, expected)) > 100 * SAME


def test_the_loss_at_trained_positions_is_the_sum_of_all_rows(model: PeftModel, rows: list[dict[str, Any]]) -> None:
    """As in training: the head at trained positions only, for packed and for padded batches."""
    expected = torch.stack([row_losses(model, collate([row]))[0] for row in rows]).sum()
    for batch in (collate(rows), collate(rows, tokens_per_batch=ROWS * LONGEST_ROW)):
        found = model(**batch.model_inputs(), use_cache=False, skip_logits=True, num_items_in_batch=1).loss
        assert distance(found, expected) <= SAME
        assert distance(gradient(model, found), gradient(model, expected)) <= SAME
