"""Greedy replies of the model to prompts, as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from kyon_pl.batch import PromptBatch
from kyon_pl.chatglm2 import ChatGLMTokenizer
from kyon_pl.chatglm2.generation import generate_replies


class GeneratedReply(NamedTuple):
    """A generated reply.

    Attributes:
        text: the reply without special tokens.
        stopped: whether the model ended it with the end-of-sequence token before the length limit.
    """

    text: str
    stopped: bool


def generate_texts(
    model: PeftModel,
    tokenizer: ChatGLMTokenizer,
    batch: PromptBatch,
    *,
    max_new_tokens: int,
    rows_per_batch: int = 16,
    sharded: bool = False,
    on_batch: Callable[[int], object] = lambda prompts: None,
) -> list[GeneratedReply]:
    """Generate a greedy reply to each prompt.

    Args:
        model: the model with its adapter.
        tokenizer: decodes the replies.
        batch: any number of prompts.
        max_new_tokens: maximum length of a reply, in tokens.
        rows_per_batch: number of prompts that are processed at once.
        sharded: whether the base is sharded, so that all ranks must make equally many forward passes.
        on_batch: called after each batch with its number of prompts.
    """
    with torch.compiler.set_stance("force_eager"):  # every new token would be a new shape to compile
        replies = generate_replies(
            model,
            batch.input_ids,
            max_new_tokens=max_new_tokens,
            batch_size=rows_per_batch,
            sharded=sharded,
            on_batch=on_batch,
        )
    texts = [tokenizer.decode(reply.token_ids, skip_special_tokens=True) for reply in replies]
    return [GeneratedReply(str(text), reply.stopped) for text, reply in zip(texts, replies, strict=True)]


REPLY_KEYS = ("row", "prompt", "reply", "reference", "stopped")
"""Of a row of `prediction_rows`."""


def prediction_rows(batch: PromptBatch, replies: list[GeneratedReply]) -> list[dict[str, Any]]:
    """Replies with their prompts, one dictionary per prompt, with `REPLY_KEYS`."""
    texts, stopped = [reply.text for reply in replies], [reply.stopped for reply in replies]
    rows = zip(batch.row_numbers, batch.prompts, texts, batch.references, stopped, strict=True)
    return [dict(zip(REPLY_KEYS, row, strict=True)) for row in rows]
