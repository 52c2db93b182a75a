"""Rows of the real data's lengths and no meaning: token ids drawn at random, lengths from token_lengths.json."""

from __future__ import annotations

import json
import random
from pathlib import Path

LENGTHS = Path(__file__).with_name("token_lengths.json")
FIRST_TEXT_ID, LAST_TEXT_ID = 259, 64_788  # between the byte tokens and the specials of the published vocabulary
PREFIX, EOS = [64_790, 64_792], 2


def write_rows(file: Path, rows: int, seed: int = 0, max_tokens: int = 2048) -> None:
    """Write rows that carry `input_ids` and `seq_len`, in the file's order of lengths, over and over.

    Args:
        file: the JSONL file to write.
        rows: how many.
        seed: of the token ids.
        max_tokens: longer contexts are cut to fit, as `over_length: shrink_context` would.
    """
    lengths = json.loads(LENGTHS.read_text(encoding="utf-8"))["rows"]
    rng = random.Random(seed)
    with file.open("w", encoding="utf-8") as stream:
        for index in range(rows):
            context, target = lengths[index % len(lengths)]
            target = min(target, max_tokens // 2)
            context = min(context, max_tokens - target - 1)
            ids = [rng.randint(FIRST_TEXT_ID, LAST_TEXT_ID) for _ in range(context - len(PREFIX) + target)]
            stream.write(json.dumps({"input_ids": [*PREFIX, *ids, EOS], "seq_len": context}) + "\n")
