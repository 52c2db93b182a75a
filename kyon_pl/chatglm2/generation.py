# mypy: allow-untyped-calls
"""Generation: batches of prompts, or one reply streamed token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import GenerationConfig, StaticCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from kyon_pl.chatglm2.attention import generation_kernels


class Reply(NamedTuple):
    """The generated tokens of one prompt.

    Attributes:
        token_ids: ids after the prompt, without the end-of-sequence token.
        stopped: whether the model ended the reply; if false, it was cut at `max_new_tokens`.
    """

    token_ids: list[int]
    stopped: bool


def generate_replies(
    model: nn.Module,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    batch_size: int = 16,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    sharded: bool = False,
    on_batch: Callable[[int], object] = lambda prompts: None,
) -> list[Reply]:
    """Generate a reply to each prompt, by greedy search or by sampling.

    Prompts are sorted by length, longest first, batched, and padded on the left.

    Args:
        model: ChatGLM2, or PEFT's wrapper around it. It is in evaluation mode during the call.
        prompts: token ids of each prompt, including `[gMASK] sop`; none may be empty.
        max_new_tokens: maximum length of a reply, including the end-of-sequence token.
        eos_token_id: end-of-sequence id; the configuration's if None.
        pad_token_id: padding id; the configuration's if None.
        batch_size: prompts per batch.
        do_sample: sample; the result depends on `seed` and on the batches.
        temperature: divisor of the logits, for sampling.
        top_p: sample from the most likely tokens with this total probability.
        seed: for sampling. torch's global random state is left unchanged.
        sharded: the weights are sharded over ranks (FSDP2). Every rank must then call this, with any number of
            prompts, because all ranks take part in each forward pass.
        on_batch: called after each batch with its number of prompts, for a progress bar.

    Returns:
        One reply per prompt, in the order of `prompts`.
    """
    generator: Any = model  # PEFT's wrapper has generate, config and device by delegation, which mypy does not see
    eos = generator.config.eos_token_id if eos_token_id is None else eos_token_id
    pad = generator.config.pad_token_id if pad_token_id is None else pad_token_id
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if do_sample else {}
    config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=pad, **sampling)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    replies: dict[int, Reply] = {}
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if sharded:
        batches += [[]] * (_max_over_ranks(len(batches), generator.device) - len(batches))
    was_training = model.training
    model.eval()
    with (
        # weights that FSDP2 first gathers in inference mode could not be trained afterwards
        torch.no_grad() if sharded else torch.inference_mode(),
        torch.random.fork_rng(_cuda_devices(generator.device)),
        # layers compiled for the shapes of training would be recompiled for each new token
        torch.compiler.set_stance("force_eager"),
        generation_kernels(),
    ):
        torch.manual_seed(seed)
        for batch in batches:
            # a rank without prompts left takes part with a dummy prompt
            ids, mask = _pad_left([prompts[index] for index in batch] or [[eos]], pad, generator.device)
            output = generator.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, synced_gpus=sharded
            )
            new_ids = output[:, ids.shape[1] :].tolist()
            replies |= {index: _cut_at_eos(row, eos) for index, row in zip(batch, new_ids, strict=bool(batch))}
            on_batch(len(batch))
    model.train(was_training)
    return [replies[index] for index in range(len(prompts))]


def _max_over_ranks(count: int, device: torch.device) -> int:
    maximum = torch.tensor(count, device=device)
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return int(maximum)


def _pad_left(prompts: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    ids = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _cut_at_eos(row: list[int], eos: int) -> Reply:
    return Reply(row[: row.index(eos)], True) if eos in row else Reply(row, False)


def _cuda_devices(device: torch.device) -> list[torch.device]:
    """The argument of `torch.random.fork_rng`."""
    return [device] if device.type == "cuda" else []


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
    """Generate one reply and pass on each token as soon as it is chosen. The tokens equal those of `generate`.

    Args:
        model: ChatGLM2 or transformers' GLM, or PEFT's wrapper around it, in evaluation mode.
        prompt: token ids, including `[gMASK] sop`.
        max_new_tokens: maximum length of the reply, including the end-of-sequence token.
        on_token: called with each id except the end-of-sequence id. An exception that it raises ends the reply.
        eos_token_id: end-of-sequence id; the configuration's if None.
        temperature: divisor of the logits; 0 for greedy search.
        top_p: sample from the most likely tokens with this total probability.
        repetition_penalty: above 1, tokens of the prompt and the reply become less likely
            (https://arxiv.org/abs/1909.05858).
        seed: for sampling. torch's global random state is left unchanged.
    """
    generator: Any = model
    eos = generator.config.eos_token_id if eos_token_id is None else eos_token_id
    ids: Any = torch.tensor([prompt], device=generator.device)
    token_ids: list[int] = []
    with torch.inference_mode(), torch.random.fork_rng(_cuda_devices(ids.device)), generation_kernels():
        torch.manual_seed(seed)
        process = logits_processors(temperature, top_p, repetition_penalty)
        prefill = generator(input_ids=ids, use_cache=True, logits_to_keep=1)
        step = (CudaGraphStep if ids.is_cuda else EagerStep)(generator, prefill.past_key_values, max_new_tokens)
        logits = prefill.logits
        while True:
            scores = process(ids, logits[:, -1].float())
            token = scores.softmax(-1).multinomial(1) if temperature else scores.argmax(-1, keepdim=True)
            if (token_id := int(token)) == eos:
                return Reply(token_ids, stopped=True)
            token_ids.append(token_id)
            on_token(token_id)
            if len(token_ids) == max_new_tokens:
                return Reply(token_ids, stopped=False)
            ids = torch.cat([ids, token], dim=1)
            logits = step(token)


def logits_processors(temperature: float, top_p: float, repetition_penalty: float) -> LogitsProcessorList:
    """The processors that `generate` would use, in its order.

    Args:
        temperature: divisor of the logits; 0 for greedy search.
        top_p: sample from the most likely tokens with this total probability; 1 for all.
        repetition_penalty: 1 for none.
    """
    processors = LogitsProcessorList()
    if repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if temperature:
        processors.append(TemperatureLogitsWarper(float(temperature)))
        if top_p < 1:
            processors.append(TopPLogitsWarper(top_p))
    return processors


class EagerStep:
    """The forward pass of one token with transformers' growing cache, for CPUs."""

    def __init__(self, model: Any, cache: Any, max_new_tokens: int) -> None:
        self.model, self.cache = model, cache

    def __call__(self, token: Tensor) -> Tensor:
        """Logits (1, 1, V) after a token (1, 1), int64."""
        logits: Tensor = self.model(input_ids=token, past_key_values=self.cache, use_cache=True).logits
        return logits


class CudaGraphStep:
    """The forward pass of one token with a static cache, replayed as a CUDA graph.

    The first token runs eagerly, which is the warm-up that capturing needs; on a CPU every token does. Graph and cache
    last for one reply. Capturing takes as long as one or two eager tokens.

    Args:
        model: ChatGLM2 or GLM, or PEFT's wrapper around it.
        cache: of the prompt.
        max_new_tokens: maximum number of further tokens.
    """

    def __init__(self, model: Any, cache: Any, max_new_tokens: int) -> None:
        seen, device = cache.get_seq_length(), model.device
        self.model = model
        self.cache = StaticCache(config=model.config, max_cache_len=seen + max_new_tokens)
        for index, layer in enumerate(cache.layers):
            self.cache.update(layer.keys, layer.values, index)
        self.token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self.position = torch.full((1, 1), seen, device=device)
        self.visible = torch.arange(seen + max_new_tokens, device=device).view(1, 1, 1, -1) < seen
        self.logits: Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, token: Tensor) -> Tensor:
        """Logits (1, 1, V) after a token (1, 1), int64; the next call overwrites them."""
        self.token.copy_(token)
        if self.graph is not None:
            self.graph.replay()
        elif self.logits is None or not token.is_cuda:
            self.logits = self._forward()
        else:
            self.graph = torch.cuda.CUDAGraph()
            # other threads, such as a web server's, may use the device during the capture
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.logits = self._forward()
            self.graph.replay()
        assert self.logits is not None
        return self.logits

    def _forward(self) -> Tensor:
        """One step on tensors with fixed addresses, as a CUDA graph needs them."""
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
