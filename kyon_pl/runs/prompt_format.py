"""How the prompts of a run were written. All that ask a trained model read it here, and write theirs the same way.

`build-data` writes it for each role beside its rows, as `NAME.prompt_format.yaml`; `fit` keeps it in the folder of
every adapter as `prompt_format.yaml`, and `merge` in that of the merged model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from kyon_pl.errors import CheckpointError
from kyon_pl.files import entry, read_yaml_mapping, shorten
from kyon_pl.logs import from_here

log = logging.getLogger(__name__)

PROMPT_FORMAT = "prompt_format.yaml"
HEAD = "# how the prompts of these rows are written; kyon-pl writes it and reads it\n"
TrainTurns = Literal["last", "all"]
Mode = Literal["fixed", "original"]
Unit = Literal["tokens", "characters"]
MemoryOrder = Literal["likeness", "frequency"]
_FIX = "Copy it again, or remove it; prompts are then built from the role alone"
_TURNS: dict[object, TrainTurns] = {"last": "last", "all": "all"}
_CHOICES = {
    "mode": get_args(Mode),
    "separator": ("###",),
    "unit": get_args(Unit),
    "memory_order": get_args(MemoryOrder),
}


@dataclass(frozen=True)
class RoleFormat:
    """How `build-data` wrote the contexts of a role's rows: system prompt, memories, history, question, in this order.

    Attributes:
        system_prompt: the text of its file.
        question: the form of most questions, such as `{asker}:「{words}」`.
        asker: the most frequent asker of these questions; empty if they have none.
        mode: see `kyon_pl.roles.build.build_data`.
        separator: text between the parts of a context.
        retrieval: how memories were ranked, see `build_data`.
        memory_number: maximum number of memories.
        memory_length: total length of the memories, in `unit`.
        history_length: total length of the turns before the question, in `unit`; mode `original` has no limit.
        unit: of the lengths.
        memory_order: see `build_data`; the order by frequency itself is kept with the role.
        memories: number of the role's memories, and their checksum.
        location: the role as `--character` takes it, an absolute path or `demo/NAME`; empty in published files.
    """

    system_prompt: str
    question: str
    asker: str
    mode: Mode
    separator: str
    retrieval: str
    memory_number: int
    memory_length: int
    history_length: int
    unit: Unit
    memory_order: MemoryOrder
    memories: str
    location: str


@dataclass(frozen=True)
class PromptFormat:
    """How the prompts of a run were written.

    Attributes:
        template: a name in `kyon_pl.data.prompt.TEMPLATES`.
        train_turns: see `kyon_pl.data.prompt.TrainTurns`.
        roles: by name, in the order of the rows; empty if they are not from `build-data`.
    """

    template: str = "raw"
    train_turns: TrainTurns = "last"
    roles: Mapping[str, RoleFormat] = field(default_factory=dict)

    def text(self) -> str:
        """The content of a file."""
        content = {"template": self.template, "train_turns": self.train_turns, "roles": _as_mapping(self.roles)}
        return HEAD + str(yaml.safe_dump(content, allow_unicode=True, sort_keys=False))

    def without_locations(self) -> PromptFormat:
        """The same without paths of this machine."""
        return replace(self, roles={name: replace(form, location="") for name, form in self.roles.items()})


def read_prompt_format(folder: Path) -> PromptFormat | None:
    """Read how the prompts of an adapter or a merged model were written.

    Args:
        folder: of the adapter, see `kyon_pl.runs.adapters.find_adapter`; or of the merged model.

    Returns:
        Of adapters of earlier versions what their `config.yaml` has, which is no roles; None if nothing is recorded.

    Raises:
        CheckpointError: a file cannot be read, or has an entry that is missing or unknown.
    """
    file, config = folder / PROMPT_FORMAT, folder / "config.yaml"
    if file.is_file():
        content = read_yaml_mapping(file, _FIX)
        return PromptFormat(*_wording(content, file), _read_roles(file, content))
    if config.is_file():
        fix = "Copy it again from the run folder, or use another adapter"
        data = entry(read_yaml_mapping(config, fix), "data", dict, config, fix)
        return PromptFormat(*_wording({"template": "raw"} | data, f"{config}: data"))
    return None


def write_prompt_format(prompts: PromptFormat, folder: Path) -> None:
    """Write it beside an adapter or a merged model."""
    (folder / PROMPT_FORMAT).write_text(prompts.text(), encoding="utf-8")


def character_option(form: PromptFormat) -> list[str]:
    """The words of `chat` that play the first role; none if it is not known where it is."""
    location = next((role.location for role in form.roles.values()), "")
    if not location:
        return []
    return ["--character", str(from_here(location)) if Path(location).is_absolute() else location]


def role_formats_file(rows: Path) -> Path:
    """The file beside rows that tells how they were written."""
    return rows.with_suffix(f".{PROMPT_FORMAT}")


def role_formats_text(roles: Mapping[str, RoleFormat]) -> str:
    """The content of the file beside rows."""
    return HEAD + str(yaml.safe_dump({"roles": _as_mapping(roles)}, allow_unicode=True, sort_keys=False))


def read_role_formats(files: Iterable[Path]) -> dict[str, RoleFormat]:
    """Read how the rows of some files were written, by role. Of a role in several files, the first one counts.

    Args:
        files: of rows; those that are not from `build-data` have no such file beside them.

    Raises:
        CheckpointError: a file cannot be read, or has an entry that is missing or unknown.
    """
    forms: dict[str, RoleFormat] = {}
    for file in filter(Path.is_file, map(role_formats_file, files)):
        for name, form in _read_roles(file, read_yaml_mapping(file, _FIX)).items():
            if forms.setdefault(name, form) != form:
                log.warning("role %s: %s tells another form of prompts; the first one is kept", name, from_here(file))
    return forms


def _as_mapping(roles: Mapping[str, RoleFormat]) -> dict[str, Any]:
    return {name: asdict(form) for name, form in roles.items()}


def _wording(content: Mapping[str, Any], where: str | Path) -> tuple[str, TrainTurns]:
    turns = content.get("train_turns") or "last"
    if not isinstance(turns, str) or turns not in _TURNS:
        raise CheckpointError(f"{where}: train_turns", f"{shorten(turns)} is neither last nor all", _FIX)
    return entry(content, "template", str, where, _FIX), _TURNS[turns]


def _read_roles(file: Path, content: Mapping[str, Any]) -> dict[str, RoleFormat]:
    roles = entry(content, "roles", dict, file, _FIX)
    return {str(name): _role_format(entry(roles, name, dict, file, _FIX), f"{file}: {name}") for name in roles}


def _role_format(content: Mapping[str, Any], where: str) -> RoleFormat:
    found: dict[str, Any] = {}
    for key in (one.name for one in fields(RoleFormat)):
        is_number = key in ("memory_number", "memory_length", "history_length")
        found[key] = entry(content, key, int if is_number else str, where, _FIX)
        if found[key] not in _CHOICES.get(key, (found[key],)) or (is_number and found[key] < 0):
            raise CheckpointError(f"{where}: {key}", f"{shorten(found[key])} is not a value that is known here", _FIX)
    return RoleFormat(**found)
