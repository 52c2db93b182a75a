"""Rows in, batches out. Some names are the original's: `read_jsonl_file`, `CharacterDataset`, `collate_fn`,
`preprocess_dialogue`.
"""

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
