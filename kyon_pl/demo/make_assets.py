# mypy: allow-untyped-calls
"""Writes the demo's rows, tokenizer and base. The result is the same byte for byte on one machine.

Training the base takes minutes on two CPU cores.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from sentencepiece import SentencePieceTrainer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.chatglm2.modeling import NOT_TRAINED
from kyon_pl.demo import ASSETS
from kyon_pl.demo.corpus import SEED, plain_rows, plain_texts, train_rows, write_rows
from kyon_pl.demo.grammar import CHARACTERS, PLAIN_SPEAKERS
from kyon_pl.demo.world import ASKERS, facts

PIECES = 1800
WORD_BOUNDARY = "|"  # no piece crosses one
TOKENIZER_CONFIG = {
    "name_or_path": "kyon-pl/demo",
    "remove_space": False,
    "do_lower_case": False,
    "tokenizer_class": "ChatGLMTokenizer",
}

THREADS = 2  # another number changes the rounding of sums
STEPS = 1000
BATCH_ROWS = 24
PEAK_RATE = 4e-3
WARMUP_STEPS = 60

SHAPE: dict[str, Any] = {
    "num_layers": 4,
    "padded_vocab_size": 2048,  # the tokenizer has 1,805 ids; padded, as the published one
    "hidden_size": 160,
    "ffn_hidden_size": 448,
    "kv_channels": 40,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
    "seq_length": 2048,
    "torch_dtype": "float16",
}


def sentences() -> list[str]:
    """The tokenizer's training text: split at line ends, which stay bytes as in ChatGLM2, with word boundaries marked.

    A name or an answer is then always tokenized the same way, which a tiny model needs to copy it.
    """
    rows = [*train_rows(), *islice(plain_rows(SEED), 800)]
    texts = [*islice(plain_texts(SEED), 400), *(row["context"] + "\n" + row["target"] for row in rows)]
    words = {word for fact in facts("zh") for word in (fact.thing, fact.value)} | set(ASKERS["zh"])
    words |= {speaker.name for speaker in (*CHARACTERS, *PLAIN_SPEAKERS)} | {"哒"}
    edges = re.compile("(" + "|".join([*sorted(words, key=lambda word: (-len(word), word)), "###", "「", "」"]) + ")")
    return [edges.sub(rf"{WORD_BOUNDARY}\1{WORD_BOUNDARY}", part) for text in texts for part in text.split("\n")]


def train_tokenizer() -> bytes:
    """The content of `tokenizer.model`: `<unk>` 0, `<s>` 1, `</s>` 2, bytes 3 to 258, then the pieces."""
    model = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        pretokenization_delimiter=WORD_BOUNDARY,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,  # another number changes the model
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(folder: Path) -> None:
    """Write `tokenizer.model` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train_tokenizer())
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n", encoding="utf-8")
    print(f"tokenizer.model and tokenizer_config.json in {folder}")


def plain_ids(tokenizer: ChatGLMTokenizer, seed: int) -> Iterator[list[int]]:
    """Yield endless sequences of ids that end with `</s>`, alternately a row of a plain speaker and prose."""
    rows, texts = plain_rows(seed), plain_texts(seed)
    while True:
        row = next(rows)
        target = tokenizer.encode(row["target"], add_special_tokens=False)
        yield [*tokenizer.encode(row["context"]), *target, tokenizer.eos_token_id]
        yield [*tokenizer.encode(next(texts)), tokenizer.eos_token_id]


def batches(tokenizer: ChatGLMTokenizer, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield endless batches of similar length: ids (R, T), padded on the right with 0, and labels (R, T).

    Separators are not trained: a base that generates them would continue the context instead of answering.
    """
    rng, sequences = Random(seed), plain_ids(tokenizer, seed)
    untrained = torch.tensor(tokenizer.convert_tokens_to_ids(["<unk>", "###", "<0x0A>"]))  # <unk> is the padding
    while True:
        pool = sorted(islice(sequences, 8 * BATCH_ROWS), key=len)
        starts = list(range(0, len(pool), BATCH_ROWS))
        rng.shuffle(starts)
        for start in starts:
            input_ids = pad_sequence([torch.tensor(ids) for ids in pool[start : start + BATCH_ROWS]], batch_first=True)
            yield input_ids, input_ids.masked_fill(torch.isin(input_ids, untrained), NOT_TRAINED)


def train(model: ChatGLM2ForCausalLM, stream: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
    """Train with AdamW, warmup and linear decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, (steps - step) / max(1, steps - WARMUP_STEPS))
    )
    for step, (input_ids, labels) in enumerate(islice(stream, steps)):
        loss = model(input_ids, labels=labels, skip_logits=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def perplexity(model: ChatGLM2ForCausalLM, stream: Iterator[tuple[Tensor, Tensor]], count: int) -> float:
    """Exponential of the mean loss per token, over `count` batches."""
    nll = tokens = 0
    for input_ids, labels in islice(stream, count):
        trained = int((labels[:, 1:] != NOT_TRAINED).sum())
        nll += model(input_ids, labels=labels, skip_logits=True).loss.double() * trained
        tokens += trained
    return float(torch.exp(torch.as_tensor(nll / tokens)))


def write_base(folder: Path) -> None:
    """Train the base on plain speech, and write `model.safetensors` (float16) and `config.json`.

    Args:
        folder: holds the tokenizer of `write_tokenizer`.
    """
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    tokenizer = ChatGLMTokenizer.from_pretrained(folder)
    model = ChatGLM2ForCausalLM(ChatGLM2Config(**SHAPE))
    train(model, batches(tokenizer, SEED), STEPS)
    model.half().save_pretrained(folder)
    print(f"{model.num_parameters():,} parameters in {folder}")
    held_out = perplexity(model.float(), batches(tokenizer, SEED + 1), count=8)
    print(f"perplexity of held-out plain text: {held_out:.3f}")


def main(folder: Path = ASSETS) -> None:
    """Write all assets."""
    write_rows(folder)
    write_tokenizer(folder / "base")
    write_base(folder / "base")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
