# mypy: allow-untyped-calls
"""Replies to many prompts at once, by transformers' own generate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from transformers import GenerationConfig

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
