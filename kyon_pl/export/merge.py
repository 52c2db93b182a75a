"""`kyon-pl merge`: merges an adapter into its base, one layer at a time."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from kyon_pl.chatglm2.checkpoint import check_weights
from kyon_pl.chatglm2.configuration import ChatGLM2Config, read_config
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.demo import fetch_base, name_to_record
from kyon_pl.demo.grammar import CHARACTERS
from kyon_pl.errors import MissingFileError, SettingError
from kyon_pl.export.formats import FORMATS, Format, save_configs, verify
from kyon_pl.export.layerwise import map_weights
from kyon_pl.export.merging import live_model, write_weights
from kyon_pl.export.staging import check_free_space, new_folder, staging_folder, write_record
from kyon_pl.hub.download import LICENCE_FILES, MODEL_FILES, TOKENIZER_FILES
from kyon_pl.imports import need_package
from kyon_pl.logs import from_here
from kyon_pl.runs.adapters import base_with_weights, find_adapter
from kyon_pl.runs.facts import read_sources
from kyon_pl.runs.prompt_format import PromptFormat, character_option, read_prompt_format, write_prompt_format

log = logging.getLogger(__name__)

NO_ADAPTER = "none"
PUBLISHED_FORMAT = PromptFormat("chatglm2", "last")


def merge(
    output: Path,
    adapter: str | None = None,
    which: Literal["best", "last"] | None = None,
    format: Literal["chatglm", "glm", "gguf"] = "chatglm",
    dtype: Literal["float16", "bfloat16", "float32"] | None = None,
    quantization: Literal["f32", "f16", "bf16", "q8_0"] | None = None,
    system: str | None = None,
    base: str | None = None,
    revision: str | None = None,
) -> None:
    """Merge an adapter into its base. The merged model loads without PEFT.

    Weights are merged in float32, one layer at a time, and rounded once. The folder gets its final name after it has
    been read again and verified against base and adapter.

    Args:
        output: the folder to write; it must not exist, or must be empty.
        adapter: a PEFT folder, a run folder, a folder of runs, a checkpoint, or a Hub id; by default the newest run.
            `none` writes the base alone, for adapters of `convert-adapter`.
        which: the checkpoint to use of a run, best (by validation loss) or last; by default the best, or the last if
            nothing was validated.
        format: `chatglm` keeps the published names and files, for kyon_pl, the published code and tools that support
            it. `glm` is for transformers' GlmForCausalLM, with a tokenizer.json, and does not need kyon_pl. `gguf` is
            for llama.cpp and Ollama.
        dtype: of the merged weights, for chatglm and glm; by default float16.
        quantization: of the merged weights, for gguf; by default f16.
        system: for gguf, the system prompt of conversations without one; by default that of the run's role, if the
            run knows it.
        base: a folder or Hub id with weights that are not quantized; by default the adapter's base.
        revision: branch, tag or commit of the base on the Hub.

    Raises:
        SettingError: the output exists, an option of another format, or the base has no weights.
        MissingFileError: adapter or base do not exist, or one of their files is missing.
        CheckpointError: adapter and base do not fit, or the merged model differs from them.
        MachineError: the disk is full, or the package `gguf` is not installed.
    """
    output = new_folder(output)
    _check_options(format, {"dtype": dtype}, {"quantization": quantization, "system": system})
    if format == "gguf":
        need_package("gguf", "gguf", where="--format gguf", does="writes the file")
    adapter_folder = None if adapter == NO_ADAPTER else find_adapter(adapter, which)
    if adapter_folder is None and base is None:
        raise SettingError("--adapter none", "no base is named", "Name one with --base")
    base_name = base_with_weights(base, adapter_folder) if adapter_folder else str(base)
    base_folder = _base_folder(base_name, revision)
    config = read_config(base_folder)
    check_weights(base_folder, config)
    live, weights = live_model(config, adapter_folder, base_name), map_weights(base_folder)
    prompts = read_prompt_format(adapter_folder) if adapter_folder else PUBLISHED_FORMAT
    stored, torch_dtype = quantization or "f16", dtype or "float16"
    record = {"base": name_to_record(base_name), "adapter": name_to_record(adapter or str(adapter_folder))}
    with staging_folder(output) as folder:
        copy_licence(base_folder, folder)
        if format == "gguf":
            from kyon_pl.export.gguf.merged import GgufExport, quantize_commands, server_command, write_gguf

            prompts = prompts or PromptFormat("raw", "last")
            system = _role_system(prompts, adapter_folder) if system is None else system
            export = GgufExport(output.name, stored, prompts, system)
            rounding = write_gguf(live, weights, base_folder, folder, export)
            record |= {"format": format, "quantization": stored}
        else:
            form = FORMATS[format]
            rounding = _write_safetensors(live, weights, base_folder, folder, form, getattr(torch, torch_dtype))
            record |= {"format": format, "dtype": torch_dtype}
        if prompts:
            write_prompt_format(prompts, folder)
        write_record(folder, record)
    shown = from_here(output)
    kind = stored if format == "gguf" else torch_dtype
    log.info("wrote %s: %s and adapter as %s in %s; logits differ by %.0e", shown, base_name, format, kind, rounding)
    folder_word = shlex.quote(str(shown))
    if format == "gguf":
        log.info("next: %s", server_command(folder_word, export))
        log.info("in 4 bits: %s", quantize_commands(folder_word, export).replace("\n", "; or "))
    else:
        words = ["kyon-pl", "chat", "--adapter", str(shown), *(character_option(prompts) if prompts else [])]
        served = f", or transformers serve {folder_word}" if format == "glm" else ""
        log.info("next: %s%s", shlex.join(words), served)


def _check_options(format: str, others: Mapping[str, str | None], ggufs: Mapping[str, str | None]) -> None:
    """Refuse options of another format.

    Args:
        format: as given.
        others: options of all formats but gguf, by name; None: not given.
        ggufs: those of gguf.
    """
    for name, value in (others if format == "gguf" else ggufs).items():
        if value is not None:
            fix = f"Leave --{name} out{', or use --quantization' if name == 'dtype' else ', or use --format gguf'}"
            raise SettingError(f"--{name}", f"--format {format} has no such option", fix)


def _role_system(prompts: PromptFormat, adapter: Path | None) -> str:
    """The system prompt of the first role that an adapter was trained on; empty if its run does not know it."""
    if prompts.roles:
        return next(iter(prompts.roles.values())).system_prompt
    return CHARACTERS[0].system_prompt if adapter and read_sources(adapter) == ("demo",) else ""


def _write_safetensors(
    live: ChatGLM2ForCausalLM,
    weights: Mapping[str, Tensor],
    base: Path,
    folder: Path,
    form: Format,
    dtype: torch.dtype,
) -> float:
    """Write a model for `from_pretrained`, and return the relative difference of its logits."""
    config = cast(ChatGLM2Config, live.config)
    check_free_space(folder, config.parameter_count * dtype.itemsize)
    live_outputs = write_weights(live, weights, folder, form, dtype)
    save_configs(base, config, folder, form, dtype)
    form.save_tokenizer(base, folder)
    return verify(folder, form, dtype, live_outputs)


def copy_licence(base: Path, folder: Path) -> None:
    """Copy the base's licence files."""
    for name in LICENCE_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def _base_folder(base: str, revision: str | None) -> Path:
    folder = fetch_base(base, revision, patterns=[*MODEL_FILES, *TOKENIZER_FILES, *LICENCE_FILES])
    for name in ("config.json", "tokenizer.model"):
        if not (folder / name).is_file():
            raise MissingFileError(str(folder), f"no {name}", "Give the complete folder of a ChatGLM2 base.")
    return folder
