"""Dialogue rows to batches. `read_jsonl_file`, `CharacterDataset`, `collate_fn` and `preprocess_dialogue` are functions
of the original training code. Names are imported on first use, because importing Lightning takes a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kyon_pl.imports import public_name

if TYPE_CHECKING:
    from kyon_pl.data.batches.collate import DialogueCollator
    from kyon_pl.data.datamodule import DialogueDataModule
    from kyon_pl.data.encoding.encode import preprocess_dialogue
    from kyon_pl.data.prompt import render
    from kyon_pl.roles.characters import CharacterDataset, collate_fn, read_jsonl_file

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
    "CharacterDataset": "kyon_pl.roles.characters",
    "DialogueCollator": "kyon_pl.data.batches.collate",
    "DialogueDataModule": "kyon_pl.data.datamodule",
    "collate_fn": "kyon_pl.roles.characters",
    "preprocess_dialogue": "kyon_pl.data.encoding.encode",
    "read_jsonl_file": "kyon_pl.roles.characters",
    "render": "kyon_pl.data.prompt",
}


def __getattr__(name: str) -> Any:
    return public_name(__name__, _HOME, name)


def __dir__() -> list[str]:
    return __all__
