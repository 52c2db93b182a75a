"""Logits, loss, gradients and greedy tokens equal the published code's, and the comparison detects mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM, layers, modeling
from kyon_pl.chatglm2.attention import rotary_angles
from kyon_pl.chatglm2.files import INV_FREQ

TOLERANCE = 1e-5
GREEDY_PROMPT_TOKENS = 12

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def recorded(golden: Path) -> Tensors:
    return load_file(golden / "chatglm2_tiny/forward.safetensors")


@pytest.fixture
def build(golden: Path, recorded: Tensors) -> Callable[..., ChatGLM2ForCausalLM]:
    """Builds the golden model, with its weights changed by an optional function."""

    def build(attention: str = "sdpa", change: Callable[[Tensors], None] | None = None) -> ChatGLM2ForCausalLM:
        config = ChatGLM2Config.from_json_file(golden / "chatglm2_tiny/config.json")
        config._attn_implementation = attention
        model = ChatGLM2ForCausalLM(config)
        weights = {
            name.removeprefix("weight."): value.clone()
            for name, value in recorded.items()
            if name.startswith("weight.") and not name.endswith(INV_FREQ)
        }
        if change is not None:
            change(weights)
        model.load_state_dict(weights, strict=True)
        return model.eval()

    return build


def differences(model: ChatGLM2ForCausalLM, recorded: Tensors) -> dict[str, float]:
    """Largest absolute difference from the golden logits, left-padded logits, loss and gradients."""
    output = model(recorded["input_ids"], labels=recorded["labels"])
    output.loss.backward()
    gradients = {f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == {name for name in recorded if name.startswith("grad.")}
    mask = recorded["leftpad_attention_mask"]
    with torch.no_grad():
        padded = model(recorded["input_ids"], attention_mask=mask, position_ids=recorded["leftpad_position_ids"]).logits
    ours = {"logits": output.logits, "loss": output.loss, "leftpad_logits": padded[mask == 1], **gradients}
    theirs = recorded | {"loss": recorded["loss"].squeeze(), "leftpad_logits": recorded["leftpad_logits"][mask == 1]}
    return {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}


def assert_equal(model: ChatGLM2ForCausalLM, recorded: Tensors) -> None:
    found = differences(model, recorded)
    too_far = {name: difference for name, difference in found.items() if not difference <= TOLERANCE}
    assert not too_far, ", ".join(sorted(too_far))


@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen"])
def test_equals_the_published_code(
    build: Callable[..., ChatGLM2ForCausalLM], recorded: Tensors, attention: str
) -> None:
    """`varlen` falls back to sdpa, on a CPU and in float32."""
    assert_equal(build(attention), recorded)


def test_gradient_checkpointing_changes_nothing(build: Callable[..., ChatGLM2ForCausalLM], recorded: Tensors) -> None:
    model = build().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert all(layer.gradient_checkpointing for layer in model.transformer.encoder.layers)
    assert_equal(model, recorded)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens(
    build: Callable[..., ChatGLM2ForCausalLM], recorded: Tensors, attention: str, use_cache: bool
) -> None:
    greedy = recorded["greedy"].unsqueeze(0)
    output = build(attention).generate(
        greedy[:, :GREEDY_PROMPT_TOKENS],
        max_length=greedy.shape[1],
        do_sample=False,
        use_cache=use_cache,
        eos_token_id=None,
    )
    assert output.tolist() == greedy.tolist()


def swap_gate_and_up(weights: Tensors) -> None:
    for name in weights:
        if name.endswith("dense_h_to_4h.weight"):
            weights[name] = torch.cat(weights[name].chunk(2)[::-1])


def shift_split_by_one_row(weights: Tensors) -> None:
    for name in weights:
        if ".query_key_value." in name:
            weights[name] = weights[name].roll(1, dims=0)


@pytest.mark.parametrize("change", [swap_gate_and_up, shift_split_by_one_row])
def test_comparison_fails_with_another_layout(
    build: Callable[..., ChatGLM2ForCausalLM], recorded: Tensors, change: Callable[[Tensors], None]
) -> None:
    with pytest.raises(AssertionError, match="logits"):
        assert_equal(build(change=change), recorded)


def rotate_halves(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> tuple[Tensor, Tensor]:
    """Pairs channel i with channel i + half, as Llama does; ChatGLM2 pairs neighbours."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)

    def rotate(x: Tensor) -> Tensor:
        turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        first, second = turned.chunk(2, dim=-1)
        return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, kept], dim=-1)

    return rotate(query), rotate(key)


def test_comparison_fails_with_other_rotary_pairs(
    build: Callable[..., ChatGLM2ForCausalLM], recorded: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "apply_rotary_pos_emb", rotate_halves)
    with pytest.raises(AssertionError, match="logits"):
        assert_equal(build(), recorded)


def test_comparison_fails_with_all_channels_rotated(
    build: Callable[..., ChatGLM2ForCausalLM], recorded: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rotate_twice_as_many(position_ids: Tensor, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return rotary_angles(position_ids, 2 * channels, dtype)

    monkeypatch.setattr(modeling, "rotary_angles", rotate_twice_as_many)
    with pytest.raises(AssertionError, match="logits"):
        assert_equal(build(), recorded)
