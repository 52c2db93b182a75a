"""Rows of the real data's lengths and no meaning: token ids drawn at random, lengths from token_lengths.json.

Rows of the tree also begin alike as the real rows do: row_tree.npz has, for the published rows in the order of their
ids, the leading tokens that each shares with the one before it, and the tokens of its context and of its target.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice, repeat
from pathlib import Path

import numpy as np

LENGTHS = Path(__file__).with_name("token_lengths.json")
TREE = Path(__file__).with_name("row_tree.npz")
NEIGHBOURS = 64  # rows of the tree that stay together
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
        tree: whether rows begin alike; lengths are then those of the tree.
    """

    rows: int = 1500
    max_tokens: int = 2048
    exact_tokens: int | None = None
    shrink: int = 1
    vocabulary: int = LAST_TEXT_ID + 1
    tree: bool = False

    def lengths(self) -> Iterator[tuple[int, int]]:
        """Context and target of each row, the end of sequence not counted."""
        if self.tree:
            yield from ((context, target - 1) for _, context, target in self.tree_rows())
            return
        file = json.loads(LENGTHS.read_text(encoding="utf-8"))["rows"]
        for context, target in islice(cycle(file), self.rows):
            target = max(1, min(target // self.shrink, (self.exact_tokens or self.max_tokens) // 2))
            if self.exact_tokens:
                yield self.exact_tokens - target - 1, target
            else:
                yield max(4, min(context // self.shrink, self.max_tokens - target - 1)), target

    def tree_rows(self) -> list[list[int]]:
        """Shared tokens, context and target (with the end of sequence) of rows, from places all over the tree."""
        tree = np.load(TREE)["shared_context_target"].astype(int)
        starts = np.linspace(0, len(tree) - NEIGHBOURS, -(-self.rows // NEIGHBOURS)).astype(int)
        parts = [tree[start : start + NEIGHBOURS].copy() for start in starts]
        for part in parts:
            part[0, 0] = 0
        rows: list[list[int]] = np.concatenate(parts)[: self.rows].tolist()
        return rows

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
        shared = [row[0] for row in shape.tree_rows()] if shape.tree else repeat(0)
        row: list[int] = []
        for (context, target), common in zip(shape.lengths(), shared, strict=False):
            begun = row[:common] or prefix
            row = [*begun, *rng.choices(ids, k=context - len(begun) + target), EOS]
            stream.write(json.dumps({"input_ids": row, "seq_len": context}) + "\n")
