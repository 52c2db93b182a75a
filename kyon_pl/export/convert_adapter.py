# mypy: allow-untyped-calls
"""`kyon-pl convert-adapter`: converts an adapter from ChatGLM2 to transformers' GLM or back, or to GGUF."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from kyon_pl.chatglm2.configuration import ChatGLM2Config, read_config
from kyon_pl.demo import fetch_base_config, name_to_record
from kyon_pl.disk import default_mode
from kyon_pl.errors import CheckpointError
from kyon_pl.export.module_lora import B, Loras, ModuleLora, fuse_qkv, group_by_module, split_qkv
from kyon_pl.export.staging import new_folder, staging_folder, write_record
from kyon_pl.imports import need_package
from kyon_pl.logs import from_here
from kyon_pl.lora.saved import read_adapter
from kyon_pl.runs.adapters import adapter_base, find_adapter
from kyon_pl.runs.prompt_format import read_prompt_format, write_prompt_format

log = logging.getLogger(__name__)


def convert_adapter(
    output: Path,
    adapter: str | None = None,
    which: Literal["best", "last"] | None = None,
    to: Literal["glm", "chatglm", "gguf"] = "glm",
    base: str | None = None,
    revision: str | None = None,
) -> None:
    """Convert an adapter of ChatGLM2 to one of transformers' GlmForCausalLM or back, or to a GGUF for llama.cpp.

    Args:
        output: the folder to write; it must not exist, or must be empty.
        adapter: a PEFT folder, a run folder, a folder of runs, a checkpoint, or a Hub id; by default the newest run.
        which: the checkpoint to use of a run, best (by validation loss) or last; by default the best, or the last if
            nothing was validated.
        to: `glm`, for models of `kyon-pl merge --format glm`; `chatglm`, for ChatGLM2; or `gguf`, for `llama-server
            --lora` on a base of `kyon-pl merge --format gguf --adapter none`.
        base: the adapter's ChatGLM2, a folder or Hub id, of which config.json is read; by default the base that the
            adapter names. An adapter for GLM names no base.
        revision: branch, tag or commit of the base on the Hub.

    Raises:
        SettingError: the output exists, or the base is not a ChatGLM2.
        MissingFileError: adapter or base do not exist.
        CheckpointError: the adapter cannot be converted, or is for another model.
        MachineError: the disk is full, or the package `gguf` is not installed.
    """
    output = new_folder(output)
    if to == "gguf":
        need_package("gguf", "gguf", where="--to gguf", does="writes the file")
    folder = find_adapter(adapter, which)
    lora, tensors = read_adapter(folder)
    base_name = base or adapter_base(folder)
    loras = group_by_module(folder, lora, tensors)
    record = {"base": name_to_record(base_name), "adapter": name_to_record(adapter or str(folder)), "format": to}
    with _modules_of(folder, "GLM" if to == "chatglm" else "ChatGLM2"), staging_folder(output) as staging:
        if to == "gguf":
            _write_gguf(staging, output.name, folder, lora, loras, record)
        else:
            config = read_config(fetch_base_config(base_name, revision))
            _write_peft(staging, lora, loras, config, to, base_name)
            write_record(staging, record)
    log.info("wrote %s: the adapter for %s, %d modules", from_here(output), to, len(loras))
    if to == "gguf":
        log.info("next: llama-server -m BASE.gguf --lora %s/%s.gguf", from_here(output), output.name)


@contextmanager
def _modules_of(folder: Path, model: str) -> Iterator[None]:
    """Name the module that a model does not have.

    Raises:
        CheckpointError: the block raised KeyError.
    """
    try:
        yield
    except KeyError as error:
        where, found = f"{folder}: module {error.args[0]}", f"it is not in {model}"
        raise CheckpointError(where, found, "Use --to for the other model") from None


def _write_gguf(
    staging: Path, name: str, adapter: Path, lora: LoraConfig, loras: Loras, record: Mapping[str, str]
) -> None:
    """Write `NAME.gguf`, and what `kyon-pl chat --server` reads beside it."""
    from kyon_pl.export.gguf.adapter import write_adapter

    write_adapter(staging / f"{name}.gguf", name, loras, lora.use_rslora)
    prompts = read_prompt_format(adapter)
    if (adapter / "tokenizer.model").is_file():
        shutil.copyfile(adapter / "tokenizer.model", staging / "tokenizer.model")
    if prompts:
        write_prompt_format(prompts, staging)
    write_record(staging, record)


def _write_peft(
    staging: Path, lora: LoraConfig, loras: Loras, config: ChatGLM2Config, to: Literal["glm", "chatglm"], base_name: str
) -> None:
    """Write the folder of a converted adapter, and read it again."""
    converted = split_qkv(loras, config) if to == "glm" else fuse_qkv(loras, config, lora.use_rslora)
    # PEFT compares the named base with the model, and a GLM does not have the name of the ChatGLM2
    named = None if to == "glm" else name_to_record(base_name)
    lora = replace(converted_config(lora, converted, config), base_model_name_or_path=named)
    lora.save_pretrained(str(staging))
    with default_mode(staging / "adapter_model.safetensors") as file:
        save_file(named_tensors(converted), file, metadata={"format": "pt"})
    _verify(staging, converted)


def converted_config(lora: LoraConfig, loras: Mapping[str, ModuleLora], config: ChatGLM2Config) -> LoraConfig:
    """Copy PEFT's configuration with the targets, ranks and alphas of the converted modules."""
    ranks = {module: module_lora.rank for module, module_lora in loras.items()}
    alphas = {module: module_lora.alpha for module, module_lora in loras.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    layers = Counter(_leaf(module) for module in loras if ".layers." in module)
    all_layers = all(count == config.num_layers for count in layers.values())
    return replace(
        lora,
        r=int(rank),
        lora_alpha=alpha,  # type: ignore[arg-type]  # may be a fraction, which PEFT supports
        rank_pattern=_exceptions(ranks, rank),
        alpha_pattern=_exceptions(alphas, alpha),
        target_modules=sorted({_leaf(module) for module in loras} if all_layers else loras),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        inference_mode=True,
    )


def named_tensors(loras: Mapping[str, ModuleLora]) -> dict[str, Tensor]:
    """The tensors by their names on disk, without shared memory."""
    return {
        f"base_model.model.{module}.{kind}": tensor.clone(memory_format=torch.contiguous_format)
        for module, lora in loras.items()
        for kind, tensor in lora.tensors.items()
    }


def _exceptions(values: Mapping[str, float], default: float) -> dict[str, float]:
    """Values other than the default, by the last name of a module if all modules of it agree, else by the full name."""
    by_leaf: dict[str, set[float]] = {}
    for module, value in values.items():
        by_leaf.setdefault(_leaf(module), set()).add(value)
    return {
        _leaf(module) if len(by_leaf[_leaf(module)]) == 1 else module: value
        for module, value in values.items()
        if value != default
    }


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _verify(folder: Path, loras: Loras) -> None:
    """Read the written adapter again.

    Raises:
        CheckpointError: it differs from `loras`, or every B is zero.
    """
    written = group_by_module(folder, *read_adapter(folder))
    same = written.keys() == loras.keys() and all(
        written[module].alpha == lora.alpha
        and written[module].tensors.keys() == lora.tensors.keys()
        and all(torch.equal(written[module].tensors[kind], tensor) for kind, tensor in lora.tensors.items())
        for module, lora in loras.items()
    )
    if not same:
        raise CheckpointError(folder.name, "the written adapter differs from the converted one", "Convert again")
    if not any(lora.tensors[B].any() for lora in loras.values()):
        raise CheckpointError(folder.name, "every B is zero: the adapter changes nothing", "Use a trained adapter")
