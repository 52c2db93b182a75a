"""generate_replies: batches give the same replies as single prompts, in order, and report whether they ended."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from published_layout import tiny_config

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM, ChatGLMTokenizer, generation
from kyon_pl.chatglm2.generation import Reply, generate_replies
from kyon_pl.demo import BASE

MAX_NEW_TOKENS = 12
EOS = 7


@pytest.fixture(scope="module")
def model() -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    return ChatGLM2ForCausalLM(tiny_config())


def random_prompts(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 96, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return random_prompts([5, 11, 3, 8, 5])


@pytest.fixture(scope="module")
def many_prompts() -> list[list[int]]:
    """Each length from 1 to 64 tokens once, in random order."""
    return random_prompts((torch.randperm(64, generator=torch.Generator().manual_seed(1)) + 1).tolist())


def greedy(model: ChatGLM2ForCausalLM, prompt: list[int], eos_token_id: int) -> Reply:
    """Greedy search for one prompt, without cache and padding."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + MAX_NEW_TOKENS:
            next_id = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if next_id == eos_token_id:
                return Reply(ids[len(prompt) :], stopped=True)
            ids.append(next_id)
    return Reply(ids[len(prompt) :], stopped=False)


def test_equals_greedy_search_without_batches(model: ChatGLM2ForCausalLM, prompts: list[list[int]]) -> None:
    without_end = greedy(model, prompts[0], eos_token_id=-1).token_ids
    eos_token_id = without_end[4]  # so that at least one reply ends before the limit
    expected = [greedy(model, prompt, eos_token_id) for prompt in prompts]
    assert {reply.stopped for reply in expected} == {True, False}
    for batch_size in (1, 2, 16):
        replies = generate_replies(
            model, prompts, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=eos_token_id, batch_size=batch_size
        )
        assert replies == expected


def generate(model: ChatGLM2ForCausalLM, prompts: list[list[int]], batch_size: int = 64) -> list[Reply]:
    return generate_replies(model, prompts, max_new_tokens=16, eos_token_id=EOS, batch_size=batch_size)


@pytest.fixture(scope="module")
def single_replies(model: ChatGLM2ForCausalLM, many_prompts: list[list[int]]) -> list[Reply]:
    return [generate(model, [prompt])[0] for prompt in many_prompts]


@pytest.mark.parametrize("batch_size", [5, 64])
def test_batches_equal_single_prompts(
    model: ChatGLM2ForCausalLM, many_prompts: list[list[int]], single_replies: list[Reply], batch_size: int
) -> None:
    assert {reply.stopped for reply in single_replies} == {True, False}
    assert len({tuple(reply.token_ids) for reply in single_replies}) > 32
    assert generate(model, many_prompts, batch_size) == single_replies


def test_visible_padding_changes_replies(
    model: ChatGLM2ForCausalLM,
    many_prompts: list[list[int]],
    single_replies: list[Reply],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: the same batches without their mask."""
    pad_left = generation._pad_left

    def without_mask(prompts: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = pad_left(prompts, pad, device)
        return ids, torch.ones_like(mask)

    monkeypatch.setattr(generation, "_pad_left", without_mask)
    replies = generate(model, many_prompts)
    assert sum(reply != single for reply, single in zip(replies, single_replies, strict=True)) > 32


def test_restores_training_mode_and_random_state(model: ChatGLM2ForCausalLM, prompts: list[list[int]]) -> None:
    model.train()
    state = torch.get_rng_state()
    replies = generate_replies(model, prompts, max_new_tokens=3, do_sample=True, temperature=2.0, seed=7)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    again = {"max_new_tokens": 3, "do_sample": True, "temperature": 2.0}
    assert generate_replies(model, prompts, **again, seed=7) == replies
    assert generate_replies(model, prompts, **again, seed=8) != replies


def test_a_small_top_p_is_greedy(model: ChatGLM2ForCausalLM, prompts: list[list[int]]) -> None:
    settings = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": 2}
    sampled = generate_replies(model, prompts, do_sample=True, top_p=1e-6, **settings)
    assert sampled == generate_replies(model, prompts, **settings)


def test_no_prompts(model: ChatGLM2ForCausalLM) -> None:
    assert generate_replies(model, [], max_new_tokens=1) == []


def test_stop_strings_end_a_reply_of_a_base_and_of_a_peft_model() -> None:
    tokenizer = ChatGLMTokenizer.from_pretrained(BASE)
    base = ChatGLM2ForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    prompt = tokenizer("照看钟楼的是", return_tensors="pt")
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    (whole,) = base.generate(**prompt, **settings)
    stop = tokenizer.decode(whole[prompt["input_ids"].shape[1] :])[1]
    for model in (base, get_peft_model(base, LoraConfig(target_modules=["query_key_value"], task_type="CAUSAL_LM"))):
        (ids,) = model.generate(**prompt, **settings, stop_strings=[stop], tokenizer=tokenizer)
        assert len(ids) < len(whole)
        assert stop in tokenizer.decode(ids[prompt["input_ids"].shape[1] :])
        assert torch.equal(ids, whole[: len(ids)])
        with pytest.raises(ValueError, match="stop_stings"):
            model.generate(**prompt, **settings, stop_stings=[stop])
