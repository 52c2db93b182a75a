# mypy: allow-untyped-calls
"""Replies: many prompts at once, or one reply token by token."""

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

from kyon_pl.chatglm2.attention import kernels_for_replies


class Reply(NamedTuple):
    """What a model said to one prompt.

    Attributes:
        token_ids: ids after the prompt, the end-of-sequence token left out.
        stopped: the model ended the reply itself; if false, it was cut at `max_new_tokens`.
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
    """Reply to each prompt, greedily unless asked to sample.

    Prompts are batched by length, longest first, and padded on the left.

    Args:
        model: ChatGLM2, or PEFT's wrapper around it. It is put into evaluation mode for the while.
        prompts: ids of each prompt, `[gMASK] sop` included; none may be empty.
        max_new_tokens: the longest reply, the end-of-sequence token counted.
        eos_token_id: what ends a reply; the configuration's if None.
        pad_token_id: what fills the left; the configuration's if None.
        batch_size: prompts a batch.
        do_sample: draw from the distribution; the draws depend on `seed` and on the batches.
        temperature: divides the logits, when sampling.
        top_p: draw from the likeliest tokens that make up this much probability, when sampling.
        seed: of the draws. torch's own random state is left as it was.
        sharded: the weights are shared out over ranks (FSDP2). Every rank then has to call this, each with whatever
            prompts it has, because they make all forward passes together.
        on_batch: told after each batch how many prompts it had, for a progress bar.

    Returns:
        One reply a prompt, in the order of the prompts.
    """
    speaker: Any = (
        model  # PEFT's wrapper has generate, config and device by delegation, where no type checker sees them
    )
    eos = speaker.config.eos_token_id if eos_token_id is None else eos_token_id
    pad = speaker.config.pad_token_id if pad_token_id is None else pad_token_id
    drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if do_sample else {}
    settings = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=pad, **drawn)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    replies: dict[int, Reply] = {}
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if sharded:
        batches += [[]] * (_most(len(batches), speaker.device) - len(batches))
    was_training = model.training
    model.eval()
    with (
        # weights that are first gathered in inference mode could not be trained on after it
        torch.no_grad() if sharded else torch.inference_mode(),
        torch.random.fork_rng(cuda_devices(speaker.device)),
        # layers compiled for training's shapes would be compiled again for the shape of every new token
        torch.compiler.set_stance("force_eager"),
        kernels_for_replies(),
    ):
        torch.manual_seed(seed)
        for batch in batches:
            # a rank without a prompt for this turn makes the forward passes, with one that nobody asked
            ids, mask = _pad_left([prompts[index] for index in batch] or [[eos]], pad, speaker.device)
            output = speaker.generate(
                input_ids=ids, attention_mask=mask, generation_config=settings, synced_gpus=sharded
            )
            new_ids = output[:, ids.shape[1] :].tolist()
            replies |= {index: _until(eos, row) for index, row in zip(batch, new_ids, strict=bool(batch))}
            on_batch(len(batch))
    model.train(was_training)
    return [replies[index] for index in range(len(prompts))]


def _most(count: int, device: torch.device) -> int:
    """The largest of the ranks' counts."""
    most = torch.tensor(count, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def _pad_left(prompts: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    ids = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _until(eos: int, row: list[int]) -> Reply:
    # what follows the end is padding, put there until the longest reply of the batch was done
    return Reply(row[: row.index(eos)], True) if eos in row else Reply(row, False)


def cuda_devices(device: torch.device) -> list[torch.device]:
    """Whose random state is to be kept, for `torch.random.fork_rng`."""
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
