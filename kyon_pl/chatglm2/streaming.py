# mypy: allow-untyped-calls
"""A reply to one prompt, token by token. On CUDA the forward pass of a token is recorded once and then replayed.

One token through the 6B is some two thousand small kernels, and to start them one by one takes a processor several
times as long as a GPU needs to run them. A recorded graph starts them all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StaticCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from kyon_pl.chatglm2.attention import kernels_for_replies
from kyon_pl.chatglm2.generation import Reply, cuda_devices


def stream_reply(
    model: nn.Module,
    prompt: list[int],
    *,
    max_new_tokens: int,
    on_token: Callable[[int], object],
    eos_token_id: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
) -> Reply:
    """Reply to one prompt, each token told as soon as it is there; the tokens are those of transformers' generate.

    Args:
        model: ChatGLM2 or transformers' GLM, or PEFT's wrapper around it, in evaluation mode.
        prompt: its ids, `[gMASK] sop` included.
        max_new_tokens: the longest reply, the end-of-sequence token counted.
        on_token: told each id, the end of sequence left out. What it raises ends the reply.
        eos_token_id: what ends a reply; the configuration's if None.
        temperature: divides the logits; 0: always the likeliest token.
        top_p: draw from the likeliest tokens that make up this much probability.
        repetition_penalty: over 1, tokens of prompt and reply become less likely (https://arxiv.org/abs/1909.05858).
        seed: of the draws. torch's own random state is left as it was.
    """
    speaker: Any = model
    eos = speaker.config.eos_token_id if eos_token_id is None else eos_token_id
    ids: Any = torch.tensor([prompt], device=speaker.device)
    said: list[int] = []
    with torch.inference_mode(), torch.random.fork_rng(cuda_devices(ids.device)), kernels_for_replies():
        torch.manual_seed(seed)
        weigh = _weighing(temperature, top_p, repetition_penalty)
        read = speaker(input_ids=ids, use_cache=True, logits_to_keep=1)
        step = (RecordedStep if ids.is_cuda else GrowingStep)(speaker, read.past_key_values, max_new_tokens)
        logits = read.logits
        while True:
            scores = weigh(ids, logits[:, -1].float())
            token = scores.softmax(-1).multinomial(1) if temperature else scores.argmax(-1, keepdim=True)
            if (token_id := int(token)) == eos:
                return Reply(said, stopped=True)
            said.append(token_id)
            on_token(token_id)
            if len(said) == max_new_tokens:
                return Reply(said, stopped=False)
            ids = torch.cat([ids, token], dim=1)
            logits = step(token)


def _weighing(temperature: float, top_p: float, repetition_penalty: float) -> LogitsProcessorList:
    """What changes the scores of a token before one is chosen, in generate's order."""
    processors = LogitsProcessorList()
    if repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if temperature:
        processors.append(TemperatureLogitsWarper(float(temperature)))
        if top_p < 1:
            processors.append(TopPLogitsWarper(top_p))
    return processors


class GrowingStep:
    """A token's forward pass, with a cache that grows: as fast as any where the processor computes, too."""

    def __init__(self, model: Any, cache: Any, max_new_tokens: int) -> None:
        self.model, self.cache = model, cache

    def __call__(self, token: Tensor) -> Tensor:
        """Logits (1, 1, V) behind a token (1, 1), int64."""
        logits: Tensor = self.model(input_ids=token, past_key_values=self.cache, use_cache=True).logits
        return logits


class RecordedStep:
    """A token's forward pass over a cache of fixed size, all of whose kernels are replayed at once.

    The first token goes through the model as usual, which is also the warming up that recording needs. On a CPU every
    token does. The graph and its cache last for one reply; to record takes as long as a token or two do without it.

    Args:
        model: whose forward pass it is.
        cache: what it has read so far.
        max_new_tokens: how many tokens more there may be.
    """

    def __init__(self, model: Any, cache: Any, max_new_tokens: int) -> None:
        seen, device = cache.get_seq_length(), model.device
        self.model = model
        self.cache = StaticCache(config=model.config, max_cache_len=seen + max_new_tokens)
        for place, layer in enumerate(cache.layers):
            self.cache.update(layer.keys, layer.values, place)
        self.token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self.position = torch.full((1, 1), seen, device=device)
        self.visible = torch.arange(seen + max_new_tokens, device=device).view(1, 1, 1, -1) < seen
        self.logits: Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, token: Tensor) -> Tensor:
        """Logits (1, 1, V) behind a token (1, 1), int64; the next call writes over them."""
        self.token.copy_(token)
        if self.graph is not None:
            self.graph.replay()
        elif self.logits is None or not token.is_cuda:
            self.logits = self._forward()
        else:
            self.graph = torch.cuda.CUDAGraph()
            # other threads, a web server's, may use the device meanwhile
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.logits = self._forward()
            self.graph.replay()
        assert self.logits is not None
        return self.logits

    def _forward(self) -> Tensor:
        """Reads and writes nothing but tensors that stay where they are."""
        self.visible.index_fill_(3, self.position[0], True)
        logits: Tensor = self.model(
            input_ids=self.token,
            position_ids=self.position,
            attention_mask=self.visible,
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        self.position.add_(1)
        return logits
