"""`model.chat` and `stream_chat` as the published class has them: prompts, answers, history."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import BASE
from kyon_pl.errors import SettingError

TOKENIZER = ChatGLMTokenizer.from_pretrained(BASE)
ROUNDS = [(f"谁在钟楼里{number}？", f"是阿砚{number}。") for number in range(5)]
LENGTH = 24  # tokens of an answer at most


@pytest.fixture(scope="module")
def model() -> ChatGLM2ForCausalLM:
    return ChatGLM2ForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


def published_prompt(query: str, history: list[tuple[str, str]]) -> str:
    """As the published `build_prompt` writes it."""
    rounds = [f"[Round {i}]\n\n问：{asked}\n\n答：{said}\n\n" for i, (asked, said) in enumerate(history, 1)]
    return "".join(rounds) + f"[Round {len(history) + 1}]\n\n问：{query}\n\n答："


@pytest.mark.parametrize("turns", range(6))
def test_prompts_are_the_published_ones(model: ChatGLM2ForCausalLM, turns: int) -> None:
    history = ROUNDS[:turns]
    expected = TOKENIZER(published_prompt("南枝呢？", history))["input_ids"]
    length, seen = len(expected) + 3, []

    def watch(module: torch.nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        seen.append(inputs["input_ids"][0].tolist())

    watching = model.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    answer, after = model.chat(TOKENIZER, "南枝呢？", history, max_length=length, do_sample=False)
    answered = len(seen)
    next(model.stream_chat(TOKENIZER, "南枝呢？", history, max_length=length), None)
    watching.remove()
    assert seen[0] == seen[answered] == expected
    assert after == [*history, ("南枝呢？", answer)]
    assert history == ROUNDS[:turns]


def test_the_answer_is_streamed_and_is_that_of_chat(model: ChatGLM2ForCausalLM) -> None:
    length = len(TOKENIZER(published_prompt("钟楼里是谁？", []))["input_ids"]) + LENGTH
    adapted = get_peft_model(model, LoraConfig(target_modules=["query_key_value"], task_type="CAUSAL_LM"))
    for each in (adapted.get_base_model(), adapted):
        whole = each.chat(TOKENIZER, "钟楼里是谁？", max_length=length, do_sample=False)
        parts = list(each.stream_chat(TOKENIZER, "钟楼里是谁？", max_length=length, do_sample=False))
        assert len(parts) > 2
        assert parts[-1] == whole
        assert all(
            whole[0].startswith(text.rstrip()) and history == [("钟楼里是谁？", text)] for text, history in parts
        )
    torch.manual_seed(1)
    sampled = {
        adapted.chat(TOKENIZER, "钟楼里是谁？", max_length=length, temperature=3.0, top_p=1.0)[0] for _ in range(3)
    }
    assert len(sampled) > 1


def test_a_prompt_without_room_for_an_answer_is_refused(model: ChatGLM2ForCausalLM) -> None:
    for method in (model.chat, lambda *of, **more: list(model.stream_chat(*of, **more))):
        with pytest.raises(SettingError, match="max_length: 5 tokens, and the prompt alone has"):
            method(TOKENIZER, "钟楼里是谁？", max_length=5)
