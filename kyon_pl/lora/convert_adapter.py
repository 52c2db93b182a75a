# mypy: allow-untyped-calls
"""`kyon-pl convert-adapter`: an adapter folder of ChatGLM2 to one for transformers' `GlmForCausalLM`, and back."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from kyon_pl.adapters import adapter_base, find_adapter
from kyon_pl.chatglm2.configuration import read_config
from kyon_pl.errors import CheckpointError
from kyon_pl.hub import fetch_config
from kyon_pl.logs import from_here
from kyon_pl.lora.glm_adapter import MAGNITUDE, A, B, Lora, Loras, fuse, named_tensors, settings_for, split
from kyon_pl.lora.record import write_record
from kyon_pl.lora.saved import read_adapter
from kyon_pl.lora.side_folder import refuse_existing, side_folder

log = logging.getLogger(__name__)

_NAME = re.compile(r"base_model\.model\.(.+)\.(lora_.+)")


def convert_adapter(
    output: Path,
    adapter: str | None = None,
    which: Literal["best", "last"] = "best",
    to: Literal["glm", "chatglm"] = "glm",
    base: str | None = None,
    revision: str | None = None,
) -> None:
    """Write an adapter of ChatGLM2 as one for transformers' GlmForCausalLM, or the other way round.

    Args:
        output: the folder to write; it must not exist, or be empty.
        adapter: a PEFT folder, a run folder, a folder of runs, a checkpoint, or a Hub id; unset, the newest run here.
        which: of a run, the best checkpoint by validation loss, or the last.
        to: `glm`, for what `kyon-pl merge --format glm` writes, or `chatglm`, for a ChatGLM2.
        base: the ChatGLM2 that it is for, a folder or Hub id, of which config.json is read; unset, the one that the
            adapter names. What is written for GLM names none.
        revision: branch, tag or commit of the base on the Hub.

    Raises:
        SettingError: the output exists, or the base is no ChatGLM2.
        MissingFileError: no such adapter or base.
        CheckpointError: a kind of adapter that cannot be converted, or one of another model.
        MachineError: the disk is full.
    """
    refuse_existing(output)
    folder = find_adapter(adapter, which)
    settings, tensors = read_adapter(folder)
    base_name = base or adapter_base(folder)
    config = read_config(fetch_config(base_name, revision))
    loras = loras_of(folder, settings, tensors)
    try:
        converted = split(loras, config) if to == "glm" else fuse(loras, config, settings.use_rslora)
    except KeyError as error:
        found = f"it is not in {'ChatGLM2' if to == 'glm' else 'GLM'}"
        raise CheckpointError(f"{folder}: module {error.args[0]}", found, "Use --to for the other model") from None
    # PEFT compares an adapter with the base that it names: a GLM's is no ChatGLM2
    named = None if to == "glm" else base_name
    settings = replace(settings_for(settings, converted, config), base_model_name_or_path=named)
    with side_folder(output) as side:
        settings.save_pretrained(str(side))
        save_file(named_tensors(converted), side / "adapter_model.safetensors", metadata={"format": "pt"})
        _verify(side, converted)
        write_record(side, {"base": base_name, "adapter": adapter or str(from_here(folder)), "format": to})
    log.info("wrote %s: the adapter for %s, %d modules", from_here(output), to, len(converted))


def loras_of(folder: Path, settings: LoraConfig, tensors: Mapping[str, Tensor]) -> Loras:
    """The adapters of a folder's tensors by the names of their modules.

    Raises:
        CheckpointError: they are no LoRA of linear layers.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or match[2] not in (A, B, MAGNITUDE):
            raise CheckpointError(f"{folder}: {name}", "no LoRA of a linear layer", "Use another adapter")
        modules.setdefault(match[1], {})[match[2]] = tensor
    for module, found in modules.items():
        if not {A, B} <= found.keys() or found[A].shape[0] != found[B].shape[1]:
            raise CheckpointError(f"{folder}: {module}", "A and B do not fit together", "Use another adapter")
    alphas = settings.alpha_pattern or {}
    keys = list(alphas)
    return {
        module: Lora(found, alphas.get(get_pattern_key(keys, module), settings.lora_alpha))
        for module, found in modules.items()
    }


def _verify(folder: Path, loras: Loras) -> None:
    """Read again what was written.

    Raises:
        CheckpointError: it is not what was to be written, or every B is zero, so that it would change nothing.
    """
    written = loras_of(folder, *read_adapter(folder))
    same = written.keys() == loras.keys() and all(
        written[module].alpha == lora.alpha
        and written[module].tensors.keys() == lora.tensors.keys()
        and all(torch.equal(written[module].tensors[kind], tensor) for kind, tensor in lora.tensors.items())
        for module, lora in loras.items()
    )
    if not same:
        raise CheckpointError(folder.name, "another adapter than was to be written", "Convert again")
    if not any(lora.tensors[B].any() for lora in loras.values()):
        raise CheckpointError(folder.name, "every B is zero: the adapter changes nothing", "Use one that was trained")
