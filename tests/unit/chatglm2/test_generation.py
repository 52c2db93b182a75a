"""Batched replies are those of each prompt by itself, in order, and say whether they ended."""

from __future__ import annotations

import pytest
import torch
from published_layout import tiny_config

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.generation import Reply, generate_replies

MAX_NEW_TOKENS = 12


@pytest.fixture(scope="module")
def model() -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    return ChatGLM2ForCausalLM(tiny_config())


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 96, (length,), generator=generator).tolist() for length in (5, 11, 3, 8, 5)]


def greedy(model: ChatGLM2ForCausalLM, prompt: list[int], eos_token_id: int) -> Reply:
    """One prompt, no cache, no padding, one argmax after the other."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + MAX_NEW_TOKENS:
            next_id = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if next_id == eos_token_id:
                return Reply(ids[len(prompt) :], stopped=True)
            ids.append(next_id)
    return Reply(ids[len(prompt) :], stopped=False)


def test_replies_equal_greedy_decoding_one_by_one(model: ChatGLM2ForCausalLM, prompts: list[list[int]]) -> None:
    never = greedy(model, prompts[0], eos_token_id=-1).token_ids
    eos_token_id = never[4]  # so that at least one reply ends before the limit
    expected = [greedy(model, prompt, eos_token_id) for prompt in prompts]
    assert {reply.stopped for reply in expected} == {True, False}
    for batch_size in (1, 2, 16):
        replies = generate_replies(
            model, prompts, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=eos_token_id, batch_size=batch_size
        )
        assert replies == expected


def test_leaves_training_and_random_state_as_they_were(model: ChatGLM2ForCausalLM, prompts: list[list[int]]) -> None:
    model.train()
    state = torch.get_rng_state()
    replies = generate_replies(model, prompts, max_new_tokens=3, do_sample=True, temperature=2.0, seed=7)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    again = {"max_new_tokens": 3, "do_sample": True, "temperature": 2.0}
    assert generate_replies(model, prompts, **again, seed=7) == replies
    assert generate_replies(model, prompts, **again, seed=8) != replies


def test_a_narrow_top_p_is_greedy(model: ChatGLM2ForCausalLM, prompts: list[list[int]]) -> None:
    settings = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": 2}
    sampled = generate_replies(model, prompts, do_sample=True, top_p=1e-6, **settings)
    assert sampled == generate_replies(model, prompts, **settings)


def test_no_prompts(model: ChatGLM2ForCausalLM) -> None:
    assert generate_replies(model, [], max_new_tokens=1) == []
