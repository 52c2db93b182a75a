"""Role data under the names of the original script, with identical results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from kyon_pl.errors import DataError
from kyon_pl.roles.contexts import original_context, original_history, original_memory
from kyon_pl.roles.retrieval import nearest_vectors
from kyon_pl.roles.role import json_objects, read_role


def read_jsonl_file(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """All objects of a file of JSON lines; a line can hold several.

    The original skipped unreadable lines, so a file with all objects on one line was empty to it.

    Args:
        path: the file.

    Raises:
        MissingFileError: there is no such file; it is a `FileNotFoundError` too.
        DataError: a line holds anything but objects.
    """
    return [row for _, row in json_objects(Path(path))]


class CharacterDataset(Dataset[dict[str, Any]]):
    """Rows of a role with retrieved memories; contexts are identical to the original's.

    `kyon-pl build-data` makes better contexts; its docstring lists the differences. With fewer memories than
    `memory_number`, where the original fails, all are used.

    Args:
        rows: each with `query`, `answer`, `chat_history` (list of turns), `embedding` (list of floats, of the query),
            `source`.
        character_path: folder with `system_prompt.txt` and `jsonl/title_text_embed.jsonl`.
        memory_number: number of memories to retrieve, by dot product.
        memory_length: total length of the memories, in characters.

    Items: `query`, `answer`, `source` of the row; `system_prompt`; `retrieved_memory` and `chat_history`, each joined;
    `embedding`, (dimensions,) float32; `input`, the whole context.

    Raises:
        MissingFileError: the folder has no system prompt.
        DataError: the folder has no stored vectors, or a file cannot be used.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        character_path: str | PathLike[str],
        memory_number: int = 8,
        memory_length: int = 2000,
    ) -> None:
        role = read_role(Path(character_path))
        if not role.vectors:
            fix = "Use kyon-pl build-data, which ranks them by their characters."
            raise DataError(str(character_path), "its memories have no stored vectors", fix)
        self.rows = rows
        self.system_prompt = role.system_prompt
        self.memories = role.memories
        self.vectors = role.vectors
        self.memory_number = memory_number
        self.memory_length = memory_length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item of a row.

        Raises:
            DataError: its vector has another size than those of the memories.
        """
        row = self.rows[index]
        embedding = torch.tensor(row["embedding"], dtype=torch.float32)
        vectors = self.vectors.get(len(embedding))
        if vectors is None:
            sizes = " or ".join(f"{size:,}" for size in self.vectors)
            found = f"{len(embedding):,} numbers in 'embedding'; the memories have {sizes}"
            raise DataError(f"row {index}", found, "Use kyon-pl build-data, which ranks memories by their characters.")
        nearest = nearest_vectors(embedding[None].numpy(), vectors, self.memory_number)[0].tolist()
        memory = original_memory([self.memories[i] for i in nearest], self.memory_length)
        return {
            "query": row["query"],
            "system_prompt": self.system_prompt,
            "retrieved_memory": memory,
            "chat_history": original_history(row["chat_history"]),
            "answer": row["answer"],
            "embedding": embedding,
            "source": row["source"],
            "input": original_context(self.system_prompt, memory, row["chat_history"], row["query"]),
        }


def collate_fn(batch: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Inputs and answers of a batch of `CharacterDataset` items.

    Args:
        batch: items with `input` and `answer`.
    """
    return [item["input"] for item in batch], [item["answer"] for item in batch]
