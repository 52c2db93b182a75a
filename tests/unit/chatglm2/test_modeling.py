"""The loss at trained positions, packed rows, padding, and transformers' interfaces."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from flash_on_cpu import row_by_row
from published_layout import tiny_config
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM, attention, modeling
from kyon_pl.chatglm2.modeling import NOT_TRAINED, find_trained_positions

ROW_LENGTHS = (7, 4, 9)

assert_close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)


@pytest.fixture
def model() -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    return ChatGLM2ForCausalLM(tiny_config()).eval()


@pytest.fixture
def rows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 96, (length,), generator=generator) for length in ROW_LENGTHS]


def labels_of(row: Tensor) -> Tensor:
    """Labels of the second half, and of the first token, which the loss must ignore."""
    labels = row.clone()
    labels[1 : len(row) // 2] = NOT_TRAINED
    return labels


def gradients(model: ChatGLM2ForCausalLM, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def pad(rows: list[Tensor], side: str, value: int = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)


def packed(rows: list[Tensor]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.cat(rows).unsqueeze(0),
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows]).unsqueeze(0),
        "labels": torch.cat([labels_of(row) for row in rows]).unsqueeze(0),
    }


def separately(model: ChatGLM2ForCausalLM, rows: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Logits of each row alone, and the summed loss, computed directly."""
    logits = [model(row.unsqueeze(0)).logits[0] for row in rows]
    sums = [
        cross_entropy(row_logits[:-1], labels_of(row)[1:], reduction="sum", ignore_index=NOT_TRAINED)
        for row_logits, row in zip(logits, rows, strict=True)
    ]
    return logits, torch.stack(sums).sum()


@pytest.mark.parametrize("num_items", [None, 5, torch.tensor(5), 2.5])
@pytest.mark.parametrize("given", [True, False])
def test_loss_without_logits_is_the_loss(
    model: ChatGLM2ForCausalLM, rows: list[Tensor], num_items: float | Tensor | None, given: bool
) -> None:
    _, total = separately(model, rows)
    labels = pad([labels_of(row) for row in rows], "right", NOT_TRAINED)
    batch = {"input_ids": pad(rows, "right"), "labels": labels, "num_items_in_batch": num_items}
    if given:
        batch["trained_positions"] = find_trained_positions(labels)
    count = (labels[:, 1:] != NOT_TRAINED).sum() if num_items is None else num_items
    expected = gradients(model, total / count)
    output = model(**batch, skip_logits=True)
    assert output.logits is None
    assert output.past_key_values is None
    assert_close(output.loss, total / count)
    assert_close(gradients(model, output.loss), expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "varlen"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_packed_rows_equal_separate_rows(
    model: ChatGLM2ForCausalLM,
    rows: list[Tensor],
    implementation: str,
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """varlen runs with its kernel replaced by an equal computation on the CPU."""
    logits, total = separately(model, rows)
    expected = gradients(model, total)
    model.set_attn_implementation(implementation)
    if implementation == "varlen":
        monkeypatch.setattr(attention, "varlen_attn", row_by_row)
        monkeypatch.setattr(modeling, "can_run_varlen", lambda hidden: True)
    if checkpointing:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    output = model(**packed(rows), num_items_in_batch=1)
    assert_close(output.logits[0], torch.cat(logits))
    assert_close(gradients(model, output.loss), expected)


def test_packed_rows_are_separate_with_a_cache(model: ChatGLM2ForCausalLM, rows: list[Tensor]) -> None:
    """transformers detects packed rows only without a cache, and evaluation creates one by default."""
    batch = packed(rows)
    del batch["labels"]
    output = model(**batch)
    assert output.past_key_values.get_seq_length() == sum(ROW_LENGTHS)
    assert_close(output.logits, model(**batch, use_cache=False).logits)
    assert_close(output.logits[0], torch.cat(separately(model, rows)[0]))


def test_flash_attention_accepts_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's operator with fake tensors, which check shapes and dtypes without a GPU; with gradients."""
    monkeypatch.setattr(modeling, "can_run_varlen", lambda hidden: True)
    with FakeTensorMode():
        model = ChatGLM2ForCausalLM._from_config(tiny_config(), dtype=torch.float16, attn_implementation="varlen")
        ids = torch.zeros(1, sum(ROW_LENGTHS), dtype=torch.int64)
        bounds = torch.zeros(len(ROW_LENGTHS) + 1, dtype=torch.int32)
        positions = torch.zeros(5, dtype=torch.int64)
        output = model(
            ids,
            position_ids=ids,
            labels=ids,
            cu_seqlens=bounds,
            max_seqlen=max(ROW_LENGTHS),
            trained_positions=positions,
            skip_logits=True,
        )
        output.loss.backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float16}


def test_bounds_from_the_collator_are_used(
    model: ChatGLM2ForCausalLM, rows: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "varlen_attn", row_by_row)
    monkeypatch.setattr(modeling, "can_run_varlen", lambda hidden: True)
    model.set_attn_implementation("varlen")
    found = model(**packed(rows)).logits
    monkeypatch.setattr(modeling, "row_bounds", None)  # the model must not compute them
    bounds = torch.tensor([0, *ROW_LENGTHS, 0]).cumsum(0).to(torch.int32)
    assert torch.equal(model(**packed(rows), cu_seqlens=bounds, max_seqlen=16).logits, found)
    with pytest.raises(ValueError, match="cu_seqlens without position_ids"):
        model(packed(rows)["input_ids"], cu_seqlens=bounds, max_seqlen=16)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(
    model: ChatGLM2ForCausalLM, rows: list[Tensor], implementation: str, side: str
) -> None:
    model.set_attn_implementation(implementation)
    logits, _ = separately(model, rows)
    mask = pad([torch.ones_like(row) for row in rows], side)
    found = model(pad(rows, side), attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    assert_close(found[mask == 1], torch.cat(logits))


def test_nothing_trained_is_a_zero_with_a_graph(model: ChatGLM2ForCausalLM, rows: list[Tensor]) -> None:
    batch = packed(rows)
    batch["labels"] = torch.full_like(batch["labels"], NOT_TRAINED)
    for num_items in (None, 0, 40):
        loss = model(**batch, num_items_in_batch=num_items, skip_logits=True).loss
        assert loss == 0
        assert all(gradient.abs().sum() == 0 for gradient in gradients(model, loss).values())


def test_loss_is_float32_in_half_precision(model: ChatGLM2ForCausalLM, rows: list[Tensor]) -> None:
    expected = model(**packed(rows)).loss
    output = model.to(torch.bfloat16)(**packed(rows))
    assert output.loss.dtype == torch.float32
    assert (output.loss / expected - 1).abs() < 0.05


def test_first_tokens_of_packed_rows_are_not_trained() -> None:
    labels = torch.tensor([[5, 6, 7, 8, NOT_TRAINED, 9]])
    position_ids = torch.tensor([[0, 1, 0, 1, 2, 3]])
    assert find_trained_positions(labels, position_ids).tolist() == [0, 2, 4]
    assert find_trained_positions(labels).tolist() == [0, 1, 2, 4]
    assert find_trained_positions(labels.view(2, 3)).tolist() == [0, 1, 4]


def test_initial_weights(model: ChatGLM2ForCausalLM) -> None:
    deviations = {name: parameter.std().item() for name, parameter in model.named_parameters() if parameter.dim() == 2}
    assert all(deviation == pytest.approx(0.3, rel=0.15) for deviation in deviations.values())
    vectors = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() == 1}
    assert len(vectors) == 2 * 3 + 1
    assert all((vector == (0 if name.endswith("bias") else 1)).all() for name, vector in vectors.items())


def test_hidden_states_and_attentions_on_request(model: ChatGLM2ForCausalLM, rows: list[Tensor]) -> None:
    model.set_attn_implementation("eager")
    ids = rows[0].unsqueeze(0)
    output = model(ids, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(1, 7, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(1, 4, 7, 7)] * 2
    assert isinstance(model(ids, return_dict=False), tuple)
    assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])


def test_layers_compile(model: ChatGLM2ForCausalLM, rows: list[Tensor]) -> None:
    """In training, without graph breaks, with the mask of packed rows; parameter names do not change."""
    names = list(model.state_dict())
    expected = model(**packed(rows), skip_logits=True).loss
    model.train()
    for layer in model.transformer.encoder.layers:
        layer.compile(backend="aot_eager", fullgraph=True)
    assert list(model.state_dict()) == names
    loss = model(**packed(rows), skip_logits=True).loss
    loss.backward()
    assert_close(loss, expected)
