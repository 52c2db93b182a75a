"""How the prompts of an adapter's training were worded, as its files record it. No torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kyon_pl.errors import CheckpointError
from kyon_pl.files import COPY_AGAIN, entry, read_json_object, read_yaml_mapping, shorten

EXPORT_RECORD = "kyon_pl.json"
"""What `merge` and `convert-adapter` write beside an export: where it comes from, and the SHA-256 of each file."""

_FIX = "Copy it again from the run folder, or use another adapter"
_TURNS: dict[str, Literal["last", "all"]] = {"last": "last", "all": "all"}


@dataclass(frozen=True)
class PromptFormat:
    """The settings that word a prompt.

    Attributes:
        template: `data.template`.
        train_turns: `data.train_turns`.
    """

    template: str
    train_turns: Literal["last", "all"]

    def as_record(self) -> dict[str, str]:
        """The entries of `kyon_pl.json`."""
        return {"template": self.template, "train_turns": self.train_turns}


def read_prompt_format(folder: Path) -> PromptFormat | None:
    """The format in the `kyon_pl.json` of an export, or in the `config.yaml` of a run's adapter.

    Args:
        folder: of an adapter or a merged model.

    Returns:
        None if it is not recorded.

    Raises:
        CheckpointError: the file cannot be read, or a value is of another type.
    """
    record, config = folder / EXPORT_RECORD, folder / "config.yaml"
    if record.is_file():
        content, where, fix = read_json_object(record), str(record), COPY_AGAIN
        if "template" not in content:
            return None
    elif config.is_file():
        content, where, fix = (
            entry(read_yaml_mapping(config, _FIX), "data", dict, config, _FIX),
            f"{config}: data",
            _FIX,
        )
    else:
        return None
    template = entry({"template": "raw"} | content, "template", str, where, fix)
    turns = content.get("train_turns") or "last"
    if turns not in _TURNS:
        raise CheckpointError(f"{where}.train_turns", f"{shorten(turns)} is neither last nor all", fix)
    return PromptFormat(template, _TURNS[turns])
