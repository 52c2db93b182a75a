# mypy: allow-untyped-calls
"""The methods `chat` and `stream_chat` of the published ChatGLM2, over transformers' generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from kyon_pl.chatglm2.generation import logits_processors
from kyon_pl.errors import SettingError

Round = tuple[str, str]
"""A question and its answer."""

_UNFINISHED = "\ufffd"  # at the end of a text: the next token has more bytes of that character


class PublishedChat:
    """The published class's conversation with arguments of the same names, in the same order.

    A history is a list of rounds, each a question and its answer. Both methods return a new one and leave the given one
    unchanged.
    """

    @torch.inference_mode()
    def chat(
        self: Any,
        tokenizer: Any,
        query: str,
        history: Sequence[Round] | None = None,
        max_length: int = 8192,
        num_beams: int = 1,
        do_sample: bool = True,
        top_p: float = 0.8,
        temperature: float = 0.8,
        logits_processor: LogitsProcessorList | None = None,
    ) -> tuple[str, list[Round]]:
        """Answer a question.

        Args:
            tokenizer: ChatGLM2's.
            query: the question.
            history: the rounds before it.
            max_length: maximum length of prompt and answer together, in tokens.
            num_beams: number of beams.
            do_sample: sample; False: take the most likely token.
            top_p: sample from the most likely tokens with this total probability.
            temperature: divisor of the logits, for sampling.
            logits_processor: further processors of the logits.

        Returns:
            The answer, and the history with this round.

        Raises:
            SettingError: the prompt leaves no room for an answer.
        """
        ids = _prompt_ids(self, tokenizer, query, history, max_length)
        sampling = (
            {"do_sample": True, "top_p": top_p, "temperature": temperature} if do_sample else {"do_sample": False}
        )
        output = self.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_length=max_length,
            num_beams=num_beams,
            logits_processor=logits_processor,
            **sampling,
        )
        answer = _clean(tokenizer.decode(output[0, ids.shape[1] :]))
        return answer, [*(history or []), (query, answer)]

    def stream_chat(
        self: Any,
        tokenizer: Any,
        query: str,
        history: Sequence[Round] | None = None,
        max_length: int = 8192,
        do_sample: bool = True,
        top_p: float = 0.8,
        temperature: float = 0.8,
        logits_processor: LogitsProcessorList | None = None,
    ) -> Iterator[tuple[str, list[Round]]]:
        """Answer a question token by token. Arguments as in `chat`.

        The published `past_key_values`, which continued a conversation from its cache, are not supported.

        Yields:
            The answer so far, and the history with it.

        Raises:
            SettingError: the prompt leaves no room for an answer.
        """
        ids = _prompt_ids(self, tokenizer, query, history, max_length)
        process = LogitsProcessorList(
            [*(logits_processor or []), *logits_processors(temperature if do_sample else 0.0, top_p, 1.0)]
        )
        token, cache, prompt_length = ids, None, ids.shape[1]
        while ids.shape[1] < max_length:
            token, cache = _next_token(self, ids, token, cache, process, do_sample)
            if int(token) == self.config.eos_token_id:
                return
            ids = torch.cat([ids, token], dim=1)
            text = tokenizer.decode(ids[0, prompt_length:])
            if text and not text.endswith(_UNFINISHED):
                answer = _clean(text)
                yield answer, [*(history or []), (query, answer)]


@torch.inference_mode()
def _next_token(
    model: Any, ids: Tensor, new: Tensor, cache: Any, process: LogitsProcessorList, do_sample: bool
) -> tuple[Tensor, Any]:
    """The next token (1, 1) after ids (1, T), of which `new` (1, N) are not in the cache yet; and the cache."""
    output = model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
    scores = process(ids, output.logits[:, -1].float())  # type: ignore[arg-type]  # wants an alias of Tensor
    token = scores.softmax(-1).multinomial(1) if do_sample else scores.argmax(-1, keepdim=True)
    return token, output.past_key_values


def _prompt_ids(model: Any, tokenizer: Any, query: str, history: Sequence[Round] | None, max_length: int) -> Tensor:
    """The published prompt of a question, (1, T) int64 on the device of the model."""
    messages = [
        {"role": role, "content": text}
        for asked, answered in history or []
        for role, text in (("user", asked), ("assistant", answered))
    ]
    messages.append({"role": "user", "content": query})
    ids: Tensor = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    if ids.shape[1] >= max_length:
        found = f"{max_length} tokens, and the prompt alone has {ids.shape[1]}"
        raise SettingError("max_length", found, "Raise it, or shorten the history")
    return ids.to(model.device)


def _clean(answer: str) -> str:
    """The answer as published: the model was trained with a placeholder for the year of its training."""
    return answer.strip().replace("[[训练时间]]", "2023年")
