"""A reply token by token has the tokens of transformers' generate, and a cache of fixed size changes nothing."""

from __future__ import annotations

import pytest
import torch
from published_layout import tiny_config
from transformers import GenerationConfig

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.generation import GrowingStep, RecordedStep, Reply, stream_reply

PROMPT = [5, 17, 80, 33, 9, 61, 24]
MAX_NEW_TOKENS = 20


@pytest.fixture(scope="module")
def model() -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    return ChatGLM2ForCausalLM(tiny_config()).eval()


def generated(model: ChatGLM2ForCausalLM, seed: int, **settings: float) -> list[int]:
    drawn = {"do_sample": True, "top_k": 0} if "temperature" in settings else {}
    config = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, eos_token_id=-1, pad_token_id=0, **drawn, **settings)
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
    told: list[int] = []
    state = torch.get_rng_state()
    reply = stream_reply(
        model, PROMPT, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=-1, seed=3, on_token=told.append, **settings
    )
    assert reply == Reply(told, stopped=False)
    assert told == generated(model, seed=3, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    plain = generated(model, seed=3)
    assert (told == plain) == (not settings)  # each of them does something


def test_ends_where_the_model_ends_it(model: ChatGLM2ForCausalLM) -> None:
    never = generated(model, seed=0)
    told: list[int] = []
    reply = stream_reply(model, PROMPT, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=never[4], on_token=told.append)
    ends = never.index(never[4])
    assert reply == Reply(never[:ends], stopped=True)
    assert told == never[:ends]


def test_a_cache_of_fixed_size_changes_nothing(model: ChatGLM2ForCausalLM) -> None:
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        steps = []
        for kind in (GrowingStep, RecordedStep):
            read = model(input_ids=ids, use_cache=True)
            steps.append(kind(model, read.past_key_values, MAX_NEW_TOKENS + 2))
        growing, fixed = steps
        for token_id in generated(model, seed=0):
            token = torch.tensor([[token_id]])
            torch.testing.assert_close(fixed(token), growing(token), rtol=1e-5, atol=1e-5)
        fixed.position.add_(1)  # a token at the wrong place is seen in the logits
        assert (fixed(token) - growing(token)).abs().max() > 1e-4
