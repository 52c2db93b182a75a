"""stream_reply gives the tokens of transformers' generate, and a static cache gives equal logits."""

from __future__ import annotations

import pytest
import torch
from published_layout import tiny_config
from transformers import GenerationConfig

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.generation import CudaGraphStep, EagerStep, Reply, stream_reply

PROMPT = [5, 17, 80, 33, 9, 61, 24]
MAX_NEW_TOKENS = 20


@pytest.fixture(scope="module")
def model() -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    return ChatGLM2ForCausalLM(tiny_config()).eval()


def generated(model: ChatGLM2ForCausalLM, seed: int, **settings: float) -> list[int]:
    sampling = {"do_sample": True, "top_k": 0} if "temperature" in settings else {}
    config = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, eos_token_id=-1, pad_token_id=0, **sampling, **settings)
    ids = torch.tensor([PROMPT])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return output[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.5},
        {"temperature": 1.7},
        {"temperature": 0.8, "top_p": 0.7, "repetition_penalty": 1.2},
    ],
)
def test_tokens_are_those_of_generate(model: ChatGLM2ForCausalLM, settings: dict[str, float]) -> None:
    tokens: list[int] = []
    state = torch.get_rng_state()
    reply = stream_reply(
        model, PROMPT, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=-1, seed=3, on_token=tokens.append, **settings
    )
    assert reply == Reply(tokens, stopped=False)
    assert tokens == generated(model, seed=3, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    plain = generated(model, seed=3)
    assert (tokens == plain) == (not settings)  # each setting has an effect


def test_ends_at_the_end_of_sequence(model: ChatGLM2ForCausalLM) -> None:
    without_end = generated(model, seed=0)
    tokens: list[int] = []
    reply = stream_reply(
        model, PROMPT, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=without_end[4], on_token=tokens.append
    )
    end = without_end.index(without_end[4])
    assert reply == Reply(without_end[:end], stopped=True)
    assert tokens == without_end[:end]


def test_a_static_cache_gives_equal_logits(model: ChatGLM2ForCausalLM) -> None:
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        steps = []
        for kind in (EagerStep, CudaGraphStep):
            prefill = model(input_ids=ids, use_cache=True)
            steps.append(kind(model, prefill.past_key_values, MAX_NEW_TOKENS + 2))
        eager, static = steps
        for token_id in generated(model, seed=0):
            token = torch.tensor([[token_id]])
            torch.testing.assert_close(static(token), eager(token), rtol=1e-5, atol=1e-5)
        static.position.add_(1)  # negative control: a wrong position changes the logits
        assert (static(token) - eager(token)).abs().max() > 1e-4
