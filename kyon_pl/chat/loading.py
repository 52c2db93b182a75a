# mypy: allow-untyped-calls
"""The speaker that words on a command line mean: a base with adapters, or a merged model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import nn
from transformers import AutoTokenizer, GlmForCausalLM

from kyon_pl.chat.speaker import Speaker
from kyon_pl.chatglm2.checkpoint import load_base
from kyon_pl.chatglm2.configuration import read_config
from kyon_pl.chatglm2.files import read_json_object
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.tokenization import read_tokenizer
from kyon_pl.data.prompt import TEMPLATES, TrainTurns
from kyon_pl.demo import fetch_base
from kyon_pl.errors import CheckpointError, SettingError
from kyon_pl.hub.download import MODEL_FILES, TOKENIZER_FILES
from kyon_pl.logs import from_here
from kyon_pl.lora.adapter import add_adapter, load_adapter
from kyon_pl.runs.adapters import SETTINGS, adapter_base, base_with_weights, find_adapter
from kyon_pl.runs.integrity import CHECKPOINTS

log = logging.getLogger(__name__)

_SMALL = 500_000_000  # parameters: float32 on a CPU up to here, and bfloat16 above


def load_speaker(
    adapters: str | Sequence[str] | None,
    which: Literal["best", "last"],
    base: str | None,
    revision: str | None,
    template: str | None,
) -> Speaker:
    """Load what words mean onto the GPU, or the CPU where there is none.

    Args:
        adapters: as `find_adapter` takes it, or several such; or the folder of a merged model, ChatGLM2 or GLM.
        which: of a run.
        base: for the adapters; None: the one that they name.
        revision: of the base on the Hub.
        template: must be the one that the adapters were trained with, where that is recorded; None: that one.

    Raises:
        SettingError: a template that does not exist, or another one than an adapter's; adapters that were not trained
            on one base, or not to be asked in the same way; a merged model beside adapters; random weights as a base.
        MissingFileError: no such adapter or base.
        CheckpointError: files that cannot be read, or do not fit together.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    words: list[str | None] = [adapters] if adapters is None or isinstance(adapters, str) else [*adapters]
    if not words:
        raise SettingError("adapter", "an empty list", "Leave it out for the newest run, or name one")
    if merged := [folder for word in words if word and is_model(folder := Path(word).expanduser())]:
        if len(words) > 1:
            fix = "Talk to it alone, or name adapters of one base"
            raise SettingError("adapter", f"{merged[0]} is a merged model, which has its adapter in it", fix)
        model, tokenizer = _merged(merged[0], device)
        return Speaker(model, tokenizer, str(merged[0]), *_wording(merged[0], template), adapters={})
    folders = [find_adapter(word, which) for word in words]
    first, *more = folders
    base_name = base_with_weights(base, first)
    wording = _wording(first, template)
    for folder in more:
        _refuse_mismatch(folder, first, None if base else base_name, wording, template)
    base_folder = fetch_base(base_name, revision, patterns=[*MODEL_FILES, *TOKENIZER_FILES])
    tokenizer = read_tokenizer(base_folder)
    peft_model = load_adapter(_chatglm(base_folder, device), first, base_name)
    names = {name: f"adapter_{place}" if place else "default" for place, name in enumerate(_names(folders))}
    for folder, name in zip(more, [*names.values()][1:], strict=True):
        add_adapter(peft_model, folder, base_name, name)
    return Speaker(peft_model.eval(), tokenizer, base_name, *wording, adapters=names)


def _refuse_mismatch(
    folder: Path, first: Path, base_name: str | None, wording: tuple[str, TrainTurns], template: str | None
) -> None:
    """Refuse an adapter that cannot take turns with the first one; with a base_name of None, bases are not compared."""
    fix = "Talk to them one after the other"
    if base_name and not _same(made_for := adapter_base(folder), base_name):
        found = f"{from_here(folder)} was made for {made_for}, and {from_here(first)} for {base_name}"
        raise SettingError("adapter", found, fix)
    if (its := _wording(folder, template)) != wording:
        found = f"{from_here(folder)} was trained with {its[0]!r} and train_turns {its[1]!r}, and {from_here(first)} "
        raise SettingError("adapter", found + f"with {wording[0]!r} and {wording[1]!r}", fix)


def _same(one: str, other: str) -> bool:
    folders = [Path(name).expanduser() for name in (one, other)]
    return one == other or (folders[0].exists() and folders[0].resolve() == folders[1].resolve())


def _names(folders: Sequence[Path]) -> list[str]:
    """What each is called: as its run if it is the only one of it, else as its folder; with a number if need be."""
    runs = [folder.resolve().parents[1] if folder.parent.name == CHECKPOINTS else None for folder in folders]
    names: list[str] = []
    for folder, run in zip(folders, runs, strict=True):
        name = run.name if run and runs.count(run) == 1 else folder.name
        numbered = (f"{name}-{number}" for number in count(2))
        names.append(name if name not in names else next(one for one in numbered if one not in names))
    return names


def is_model(folder: Path) -> bool:
    """Whether a folder holds a whole model, and no adapter."""
    return (folder / "config.json").is_file() and not (folder / SETTINGS).is_file()


def _chatglm(folder: Path, device: torch.device) -> ChatGLM2ForCausalLM:
    dtype = _dtype(device, read_config(folder).parameter_count)
    log.info("base: %s in %s on %s", from_here(folder), str(dtype).removeprefix("torch."), device)
    return load_base(folder, dtype=dtype, device=device, attn_implementation="sdpa")


def _merged(folder: Path, device: torch.device) -> tuple[nn.Module, Any]:
    if read_json_object(folder / "config.json").get("model_type") != "glm":
        return _chatglm(folder, device), read_tokenizer(folder)
    model = GlmForCausalLM.from_pretrained(folder, dtype="auto", device_map={"": device}, local_files_only=True)
    if device.type == "cpu" and model.num_parameters() < _SMALL:
        model = model.float()
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _dtype(device: torch.device, parameters: int) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32 if parameters < _SMALL else torch.bfloat16


def _wording(folder: Path, template: str | None) -> tuple[str, TrainTurns]:
    """Template and trained turns, as the `config.yaml` of a run's adapter records them."""
    file = folder / "config.yaml"
    try:
        recorded = yaml.safe_load(file.read_text(encoding="utf-8"))["data"] if file.is_file() else {}
        trained_with = recorded.get("template", "raw") if file.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            str(file), f"it cannot be read ({type(error).__name__})", "Use another adapter"
        ) from error
    if template and template not in TEMPLATES:
        raise SettingError("template", f"there is no {template!r}", f"Choose one of: {', '.join(TEMPLATES)}.")
    if template and trained_with and template != trained_with:
        fix = "Leave --template out: asked in other words, it would not answer as it learned to"
        raise SettingError("template", f"{template!r}, and the adapter was trained with {trained_with!r}", fix)
    return template or trained_with or "raw", "all" if recorded.get("train_turns") == "all" else "last"
