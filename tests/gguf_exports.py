"""What tests ask of a GGUF and of the llama.cpp that serves it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from llama_cpp import LlamaServer
from numpy.typing import NDArray

from kyon_pl.runs.prompt_format import PromptFormat, write_prompt_format

SEPARATOR_ID = 2  # </s>, which no text is encoded as
RANGES = (
    (0x4E00, 0x9FFF), (0x3040, 0x30FF), (0xAC00, 0xD7A3), (0x20, 0x7E), (0x0400, 0x04FF), (0x0300, 0x036F),
    (0x1F300, 0x1FAFF), (0x1, 0x1F), (0x3000, 0x303F), (0xFF00, 0xFFEF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF),
)  # fmt: skip
WORDS = (
    " ", "  ", "\n", "\t", "sop", "eop", "[sop]", "[gMASK]", "<s>", "</s>", "<unk>", "<0x0A>", "[PAD1900]", "people",
    "philosophy", "▁", "###", "[Round 1]", "「", "」",
)  # fmt: skip


def exported(folder: Path) -> Path:
    """The GGUF in a folder."""
    (file,) = folder.glob("*.gguf")
    return file


def random_text(rng: random.Random) -> str:
    """Up to a dozen runs, each of one script, or a word that could be taken for something else."""
    parts = []
    for _ in range(rng.randint(1, 12)):
        if rng.random() < 0.3:
            parts.append(rng.choice(WORDS))
        else:
            start, end = rng.choice(RANGES)
            parts.append("".join(chr(rng.randint(start, end)) for _ in range(rng.randint(1, 8))))
    return "".join(parts)


def encoded_by(server: LlamaServer, texts: Sequence[str]) -> list[list[int]]:
    """The server's ids of texts, special tokens not parsed; all in one request, with an id between them."""
    content = [part for text in texts for part in (text, SEPARATOR_ID)]
    ids = server.ask("/tokenize", content=content, add_special=False, parse_special=False)["tokens"]
    rows: list[list[int]] = [[]]
    for one in ids:
        if one == SEPARATOR_ID:
            rows.append([])
        else:
            rows[-1].append(one)
    assert not rows.pop()
    return rows


def log_probabilities(
    server: LlamaServer, prompt: list[int], vocab_size: int, **request: object
) -> NDArray[np.float32]:
    """Of the token after a prompt, (vocab_size,)."""
    # llama.cpp reuses keys and values that were computed with another scale of an adapter
    fresh = {"cache_prompt": "lora" not in request}
    answer = server.ask(
        "/completion", prompt=prompt, n_predict=1, temperature=0, n_probs=vocab_size, **fresh, **request
    )
    found = np.full(vocab_size, np.nan, dtype=np.float32)
    for one in answer["completion_probabilities"][0]["top_logprobs"]:
        found[one["id"]] = one["logprob"]
    return found


def with_prompt_format(adapter: Path, folder: Path, template: str, train_turns: Literal["last", "all"]) -> Path:
    """A copy of an adapter whose run was worded in another way."""
    shutil.copytree(adapter, folder)
    write_prompt_format(PromptFormat(template, train_turns), folder)
    return folder
