"""Rows of the real data's lengths and no meaning: token ids drawn at random, lengths from token_lengths.json."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

LENGTHS = Path(__file__).with_name("token_lengths.json")
FIRST_TEXT_ID, LAST_TEXT_ID = 259, 64_788  # between the byte tokens and the specials of the published vocabulary
PREFIX, EOS = [64_790, 64_792], 2


@dataclass(frozen=True)
class RowShape:
    """Which rows.

    Attributes:
        rows: how many.
        max_tokens: longer contexts are cut to fit, as `over_length: shrink_context` would.
        exact_tokens: every row has that many, its target the file's; None: the file's lengths, over and over.
        shrink: contexts and targets are divided by it, for tiny models.
        vocabulary: ids lie below it.
    """

    rows: int = 1500
    max_tokens: int = 2048
    exact_tokens: int | None = None
    shrink: int = 1
    vocabulary: int = LAST_TEXT_ID + 1

    def lengths(self) -> Iterator[tuple[int, int]]:
        """Context and target of each row, the end of sequence not counted."""
        file = json.loads(LENGTHS.read_text(encoding="utf-8"))["rows"]
        for context, target in islice(cycle(file), self.rows):
            target = max(1, min(target // self.shrink, (self.exact_tokens or self.max_tokens) // 2))
            if self.exact_tokens:
                yield self.exact_tokens - target - 1, target
            else:
                yield max(4, min(context // self.shrink, self.max_tokens - target - 1)), target

    @property
    def seen_tokens(self) -> float:
        """Length of the row that a token stands in, the mean over tokens: what attention costs goes by it."""
        totals = [context + target + 1 for context, target in self.lengths()]
        return sum(total**2 for total in totals) / sum(totals)


def write_rows(file: Path, shape: RowShape, seed: int = 0) -> None:
    """Write rows that carry `input_ids` and `seq_len`.

    Args:
        file: the JSONL file to write.
        shape: how many, and how long.
        seed: of the token ids.
    """
    rng = random.Random(seed)
    ids = range(FIRST_TEXT_ID, min(LAST_TEXT_ID + 1, shape.vocabulary))
    prefix = [min(token, shape.vocabulary - 1) for token in PREFIX]
    with file.open("w", encoding="utf-8") as stream:
        for context, target in shape.lengths():
            drawn = rng.choices(ids, k=context - len(prefix) + target)
            stream.write(json.dumps({"input_ids": [*prefix, *drawn, EOS], "seq_len": context}) + "\n")
