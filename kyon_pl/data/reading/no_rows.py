"""Files that hold no rows yet: `kyon-pl import-role` makes a role of a card, a chat log or a novel."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

from kyon_pl.data.reading.text_files import file_format

_SUFFIXES = (".txt", ".png")
_COLUMNS = (
    ("a character card", frozenset({"spec", "data"})),
    ("a character card", frozenset({"name", "first_mes"})),
    ("a chat log of Discord", frozenset({"guild", "channel", "messages"})),
)


def kind_of_columns(columns: Collection[str]) -> str | None:
    """What a JSON file is, by its keys; None if it is no file for `kyon-pl import-role`."""
    return next((kind for kind, needed in _COLUMNS if needed <= {*columns}), None)


def has_suffix_to_import(file: Path) -> bool:
    """Whether the suffix of a file is one of cards, chat logs and novels, and of no rows."""
    return file_format(file) in _SUFFIXES


def import_command(file: str | Path) -> str:
    """The sentence that says how to make a role of a file."""
    command = f"kyon-pl import-role {shlex.quote(str(file))} --output roles/NAME"
    return f"Make a role of a card, a chat log or a novel: {command}"
