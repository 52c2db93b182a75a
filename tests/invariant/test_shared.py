"""A row that shares its beginning with others is the row alone: the same loss and the same adapter gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from flash_on_cpu import install_flash4, row_by_row
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from one_step import SEED, tiny_base, with_adapter
from peft import LoraConfig, PeftModel
from test_packed import SAME, distance, gradient
from torch import Tensor

from kyon_pl.batch import Batch
from kyon_pl.chatglm2 import attention, modeling
from kyon_pl.chatglm2.attention import FLASH
from kyon_pl.data import DialogueCollator
from kyon_pl.data.batches.clusters import cut_clusters
from kyon_pl.data.batches.collate import LabelBoundary, PlannedCollator
from kyon_pl.data.batches.sampler import MicroBatch
from kyon_pl.data.encoding.tree import find_shared
from kyon_pl.lora import attach_lora

BUDGET, LONGEST = 96, 24
Row = dict[str, Any]
# ids of few kinds, so that contexts often begin alike
CONTEXTS = st.lists(st.integers(3, 4), min_size=1, max_size=16)
TARGETS = st.lists(st.integers(3, 95), min_size=1, max_size=7)
ROWS = st.lists(st.tuples(CONTEXTS, TARGETS), min_size=1, max_size=6)
SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VARIANTS = {
    "fused projection": LoraConfig(r=4, lora_alpha=8, target_modules=["query_key_value"]),
    "all linear layers, rsLoRA": LoraConfig(r=4, target_modules="all-linear", use_rslora=True),
    "DoRA": LoraConfig(r=4, target_modules=["query_key_value", "dense"], use_dora=True),
}


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest) -> PeftModel:
    torch.manual_seed(SEED)
    return with_adapter(tiny_base(request.param))


@pytest.fixture(scope="module", params=["eager", "sdpa", "varlen", "fa4"])
def any_model(request: pytest.FixtureRequest) -> Iterator[PeftModel]:
    """With the arithmetic of flash attention on a CPU, which has no such kernels."""
    torch.manual_seed(SEED)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param in FLASH:
            monkeypatch.setattr(attention, "varlen_attn", row_by_row)
            monkeypatch.setattr(modeling, "can_run_varlen", lambda hidden: True)
            install_flash4(monkeypatch)
        yield with_adapter(tiny_base(request.param))


def make_rows(drawn: list[tuple[list[int], list[int]]]) -> list[Row]:
    return [{"input_ids": [*context, *target], "seq_len": len(context), "masked": []} for context, target in drawn]


def share(rows: list[Row], boundary: LabelBoundary = "target", longest: int = LONGEST) -> list[Batch]:
    """All clusters of the rows, each as a batch of its own with padding."""
    tokens = torch.tensor([len(row["input_ids"]) for row in rows]).numpy()
    contexts = torch.tensor([row["seq_len"] for row in rows]).numpy()
    ids = torch.tensor([token for row in rows for token in row["input_ids"]], dtype=torch.int32).numpy()
    tree = find_shared(ids, tokens.cumsum() - tokens, contexts)
    clusters = cut_clusters(tree, tokens, None, BUDGET)
    collate = PlannedCollator(DialogueCollator(label_boundary=boundary), BUDGET, longest, shares=True)
    batches = []
    for number in range(len(clusters)):
        chosen, shared = clusters.chosen(torch.tensor([number]).numpy())
        planned = MicroBatch(tuple(chosen.tolist()), 0, tuple(shared.tolist()))
        batches.append(collate((planned, [rows[index] for index in chosen])))
    return batches


def alone(rows: list[Row], boundary: LabelBoundary = "target") -> list[Batch]:
    """Each row as a batch of its own, without padding."""
    collate = PlannedCollator(DialogueCollator(label_boundary=boundary))
    return [collate((MicroBatch((index,), 0), [row])) for index, row in enumerate(rows)]


def loss_and_gradient(model: PeftModel, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Summed over the batches, as in training."""
    total = torch.zeros(())
    for batch in batches:
        total = total + model(**batch.model_inputs(), use_cache=False, skip_logits=True, num_items_in_batch=1).loss
    return total.detach(), gradient(model, total)


def assert_same(model: PeftModel, found: list[Batch], expected: list[Batch]) -> None:
    for one, other in zip(loss_and_gradient(model, found), loss_and_gradient(model, expected), strict=True):
        assert distance(one, other) <= SAME


@SETTINGS
@example(drawn=[([3, 4, 3], [9]), ([3, 4, 3], [9]), ([3, 4, 3], [8, 7])])  # whole contexts, a duplicate among them
@example(drawn=[([3], [9]), ([4], [9])])  # nothing
@example(drawn=[([3] * 16, [5, 6, 7])])  # one row
@given(drawn=ROWS)
def test_rows_that_share_are_the_rows_alone(model: PeftModel, drawn: list[tuple[list[int], list[int]]]) -> None:
    rows = make_rows(drawn)
    assert_same(model, share(rows), alone(rows))


@SETTINGS
@given(drawn=ROWS)
def test_the_original_label_boundary(model: PeftModel, drawn: list[tuple[list[int], list[int]]]) -> None:
    """It trains the last token of a context too, which can be shared."""
    rows = make_rows(drawn)
    assert_same(model, share(rows, boundary="seed"), alone(rows, "seed"))


FAMILY = make_rows(
    [([3, 4, 3, 3, 4, 4], [50, 51]), ([3, 4, 3, 3, 4, 4], [52]), ([3, 4, 3, 4], [53, 54, 55]), ([3, 4], [56, 57, 58])]
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_kinds_of_lora(variant: str) -> None:
    torch.manual_seed(SEED)
    model = attach_lora(tiny_base("sdpa"), VARIANTS[variant], "tiny")
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.25)
    assert_same(model, share(FAMILY), alone(FAMILY))


def test_a_family(any_model: PeftModel) -> None:
    assert_same(any_model, share(FAMILY), alone(FAMILY))


def test_several_replies_of_a_conversation(any_model: PeftModel) -> None:
    """With `train_turns: all`, stretches after the shared context have no labels."""
    rows = [row | {"input_ids": [*row["input_ids"], 60, 61, 62, 63, 2], "masked": []} for row in FAMILY]
    for row in rows:
        row["masked"] = [row["seq_len"] + 1, row["seq_len"] + 3]
    assert_same(any_model, share(rows), alone(rows))


def test_a_row_fills_the_pack(any_model: PeftModel) -> None:
    rows = make_rows([([3] * 90, [7] * 6), ([3] * 90, [8])])
    batches = share(rows, longest=BUDGET)
    assert [batch.computed_tokens for batch in batches] == [97 - 1, 91]  # the two do not fit together
    assert_same(any_model, batches, alone(rows))


def positions_that_count_on(batch: Batch) -> Batch:
    return replace(batch, position_ids=torch.arange(batch.input_ids.numel())[None])


def neighbours_that_see_each_other(batch: Batch) -> Batch:
    bounds, key_bounds = batch.cu_seqlens.clone(), batch.cu_seqlens_k.clone()
    bounds[1], key_bounds[1] = bounds[2], key_bounds[2]  # the second row belongs to the first
    return replace(batch, cu_seqlens=bounds, cu_seqlens_k=key_bounds)


def a_target_that_is_shared(batch: Batch) -> Batch:
    index = batch.key_index.clone()
    start = int(batch.cu_seqlens_k[1])
    index[start : start + 7] = batch.key_index[:7]  # seven tokens, and the context has six
    return replace(batch, key_index=index)


def an_index_of_one_token_too_many(batch: Batch) -> Batch:
    bounds = batch.cu_seqlens_k.clone()
    bounds[1:] += 1
    return replace(batch, cu_seqlens_k=bounds, key_index=torch.cat([batch.key_index[:1], batch.key_index]))


@pytest.mark.parametrize(
    "spoil",
    [
        positions_that_count_on,
        neighbours_that_see_each_other,
        a_target_that_is_shared,
        an_index_of_one_token_too_many,
    ],
)
def test_control(any_model: PeftModel, spoil: Callable[[Batch], Batch]) -> None:
    """What the comparison must notice."""
    (batch,) = share(FAMILY)
    assert batch.computed_tokens < batch.tokens
    expected = loss_and_gradient(any_model, alone(FAMILY))
    found = loss_and_gradient(any_model, [spoil(batch)])
    assert max(distance(one, other) for one, other in zip(found, expected, strict=True)) > 100 * SAME


def test_the_last_layer_computes_labels_only(any_model: PeftModel) -> None:
    """Its feed-forward network sees as many tokens as there are labels; with hidden states returned, all tokens."""
    seen: list[int] = []
    layer = any_model.get_base_model().transformer.encoder.layers[-1]
    hook = layer.mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[:-1].numel()))
    (batch,) = share(FAMILY)
    inputs = batch.model_inputs() | {"use_cache": False, "skip_logits": True}
    few, many = any_model(**inputs).loss, any_model(**inputs, output_hidden_states=True).loss
    hook.remove()
    assert seen == [batch.trained_tokens, BUDGET]
    assert distance(few, many) <= SAME
