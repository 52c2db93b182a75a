# mypy: allow-untyped-calls
"""Makes the demo's base: a tiny ChatGLM2 that has read the little world in plain speech. The same bytes on one machine.

Minutes on two CPU cores. Needs what `make_tokenizer` wrote.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import ASSETS
from kyon_pl.demo.corpus import SEED, plain_rows, plain_texts

THREADS = 2  # sums are rounded in another order with another number
STEPS = 1000
BATCH_ROWS = 24
PEAK_RATE = 4e-3
WARMUP_STEPS = 60
NOT_TRAINED = -100

SHAPE: dict[str, Any] = {
    "num_layers": 4,
    "padded_vocab_size": 2048,  # the tokenizer has 1,805 ids: padded, as the original's
    "hidden_size": 160,
    "ffn_hidden_size": 448,
    "kv_channels": 40,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
    "seq_length": 2048,
    "torch_dtype": "float16",
}


def plain_ids(tokenizer: ChatGLMTokenizer, seed: int) -> Iterator[list[int]]:
    """Endless sequences of ids, each ended with `</s>`: a row of a plain speaker and a piece of prose in turn."""
    rows, texts = plain_rows(seed), plain_texts(seed)
    while True:
        row = next(rows)
        target = tokenizer.encode(row["target"], add_special_tokens=False)
        yield [*tokenizer.encode(row["context"]), *target, tokenizer.eos_token_id]
        yield [*tokenizer.encode(next(texts)), tokenizer.eos_token_id]


def batches(tokenizer: ChatGLMTokenizer, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of like length: ids (R, T), padded on the right with 0, and labels (R, T).

    Every token is trained but the separators: a base that has learnt those goes on with a context instead of answering.
    """
    rng, sequences = Random(seed), plain_ids(tokenizer, seed)
    untrained = torch.tensor(tokenizer.convert_tokens_to_ids(["<unk>", "###", "<0x0A>"]))  # <unk> pads
    while True:
        pool = sorted(islice(sequences, 8 * BATCH_ROWS), key=len)
        starts = list(range(0, len(pool), BATCH_ROWS))
        rng.shuffle(starts)
        for start in starts:
            input_ids = pad_sequence([torch.tensor(ids) for ids in pool[start : start + BATCH_ROWS]], batch_first=True)
            yield input_ids, input_ids.masked_fill(torch.isin(input_ids, untrained), NOT_TRAINED)


def train(model: ChatGLM2ForCausalLM, stream: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
    """AdamW with a warm-up and a linear way down."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, (steps - step) / max(1, steps - WARMUP_STEPS))
    )
    for step, (input_ids, labels) in enumerate(islice(stream, steps)):
        loss = model(input_ids, labels=labels, skip_logits=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def perplexity(model: ChatGLM2ForCausalLM, stream: Iterator[tuple[Tensor, Tensor]], count: int) -> float:
    """Exponential of the mean loss a token, over `count` batches."""
    nll = tokens = 0
    for input_ids, labels in islice(stream, count):
        trained = int((labels[:, 1:] != NOT_TRAINED).sum())
        nll += model(input_ids, labels=labels, skip_logits=True).loss.double() * trained
        tokens += trained
    return float(torch.exp(torch.as_tensor(nll / tokens)))


def main(folder: Path = ASSETS / "base") -> None:
    """Train on plain speech and write `model.safetensors` (float16) and `config.json`."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    tokenizer = ChatGLMTokenizer.from_pretrained(folder)
    model = ChatGLM2ForCausalLM(ChatGLM2Config(**SHAPE))
    train(model, batches(tokenizer, SEED), STEPS)
    model.half().save_pretrained(folder)
    print(f"{model.num_parameters():,} parameters in {folder}")
    other = perplexity(model.float(), batches(tokenizer, SEED + 1), count=8)
    print(f"perplexity of other plain text: {other:.3f}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
