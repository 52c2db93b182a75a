"""64 prompts of unlike lengths, batched, as one by one: greedy, float32."""

from __future__ import annotations

import pytest
import torch
from published_layout import tiny_config

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM, generation
from kyon_pl.chatglm2.generation import Reply, generate_replies

EOS = 7


@pytest.fixture(scope="module")
def model() -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    return ChatGLM2ForCausalLM(tiny_config())


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """1 to 64 tokens, each length once, in no order."""
    generator = torch.Generator().manual_seed(1)
    lengths = (torch.randperm(64, generator=generator) + 1).tolist()
    return [torch.randint(3, 96, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture(scope="module")
def alone(model: ChatGLM2ForCausalLM, prompts: list[list[int]]) -> list[Reply]:
    return [reply(model, [prompt])[0] for prompt in prompts]


def reply(model: ChatGLM2ForCausalLM, prompts: list[list[int]], batch_size: int = 64) -> list[Reply]:
    return generate_replies(model, prompts, max_new_tokens=16, eos_token_id=EOS, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [5, 64])
def test_batched_equals_single(
    model: ChatGLM2ForCausalLM, prompts: list[list[int]], alone: list[Reply], batch_size: int
) -> None:
    assert {said.stopped for said in alone} == {True, False}
    assert len({tuple(said.token_ids) for said in alone}) > 32
    assert reply(model, prompts, batch_size) == alone


def test_padding_that_is_seen_would_change_replies(
    model: ChatGLM2ForCausalLM, prompts: list[list[int]], alone: list[Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same batches without their mask."""
    pad_left = generation._pad_left

    def without_mask(prompts: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = pad_left(prompts, pad, device)
        return ids, torch.ones_like(mask)

    monkeypatch.setattr(generation, "_pad_left", without_mask)
    assert sum(said != single for said, single in zip(reply(model, prompts), alone, strict=True)) > 32
