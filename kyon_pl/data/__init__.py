"""Rows in, batches out. Some names are the original's: `read_jsonl_file`, `CharacterDataset`, `collate_fn`,
`preprocess_dialogue`. They are imported on first use: `chat` needs little of it, and Lightning takes a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kyon_pl.data.characters import CharacterDataset, collate_fn, read_jsonl_file
    from kyon_pl.data.collate import DialogueCollator
    from kyon_pl.data.datamodule import DialogueDataModule
    from kyon_pl.data.encode import preprocess_dialogue
    from kyon_pl.data.prompt import render

__all__ = [
    "CharacterDataset",
    "DialogueCollator",
    "DialogueDataModule",
    "collate_fn",
    "preprocess_dialogue",
    "read_jsonl_file",
    "render",
]

_HOME = {
    "CharacterDataset": "characters",
    "DialogueCollator": "collate",
    "DialogueDataModule": "datamodule",
    "collate_fn": "characters",
    "preprocess_dialogue": "encode",
    "read_jsonl_file": "characters",
    "render": "prompt",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kyon_pl.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kyon_pl.data.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
