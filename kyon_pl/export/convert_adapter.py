# mypy: allow-untyped-calls
"""`kyon-pl convert-adapter`: converts an adapter from ChatGLM2 to transformers' GLM or back, or to GGUF."""

from __future__ import annotations

import logging
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from kyon_pl.chatglm2.configuration import ChatGLM2Config, read_config
from kyon_pl.chatglm2.glm import FUSED_QKV, SPLIT_QKV, module_from_glm, module_to_glm, split_sizes
from kyon_pl.demo import fetch_base_config, name_to_record
from kyon_pl.disk import default_mode
from kyon_pl.errors import CheckpointError
from kyon_pl.export.staging import new_folder, staging_folder, write_record
from kyon_pl.imports import need_package
from kyon_pl.logs import from_here
from kyon_pl.lora.saved import read_adapter
from kyon_pl.runs.adapters import adapter_base, find_adapter
from kyon_pl.runs.prompt_format import read_prompt_format, write_prompt_format

log = logging.getLogger(__name__)

A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
_NAME = re.compile(r"base_model\.model\.(.+)\.(lora_.+)")


@dataclass(frozen=True)
class ModuleLora:
    """The LoRA weights of one module.

    Attributes:
        tensors: A (r, C), B (N, r), and for DoRA a magnitude (N,), by their names on disk.
        alpha: `lora_alpha` of the module.
    """

    tensors: dict[str, Tensor]
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return int(self.tensors[A].shape[0])

    def scale(self, use_rslora: bool) -> float:
        """The factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if use_rslora else self.rank)


Loras = dict[str, ModuleLora]


def convert_adapter(
    output: Path,
    adapter: str | None = None,
    which: Literal["best", "last"] = "best",
    to: Literal["glm", "chatglm", "gguf"] = "glm",
    base: str | None = None,
    revision: str | None = None,
) -> None:
    """Convert an adapter of ChatGLM2 to one of transformers' GlmForCausalLM or back, or to a GGUF for llama.cpp.

    Args:
        output: the folder to write; it must not exist, or must be empty.
        adapter: a PEFT folder, a run folder, a folder of runs, a checkpoint, or a Hub id; by default the newest run.
        which: of a run, the best checkpoint by validation loss, or the last.
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


def group_by_module(folder: Path, config: LoraConfig, tensors: Mapping[str, Tensor]) -> Loras:
    """Group the tensors of an adapter by module.

    Raises:
        CheckpointError: a tensor is not LoRA of a linear layer, or A and B do not fit together.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or match[2] not in (A, B, MAGNITUDE):
            raise CheckpointError(f"{folder}: {name}", "not LoRA of a linear layer", "Use another adapter")
        modules.setdefault(match[1], {})[match[2]] = tensor
    for module, group in modules.items():
        if not {A, B} <= group.keys() or group[A].shape[0] != group[B].shape[1]:
            raise CheckpointError(f"{folder}: {module}", "A and B do not fit together", "Use another adapter")
    alphas = config.alpha_pattern or {}
    keys = list(alphas)
    return {
        module: ModuleLora(group, alphas.get(get_pattern_key(keys, module), config.lora_alpha))
        for module, group in modules.items()
    }


def split_qkv(loras: Mapping[str, ModuleLora], config: ChatGLM2Config) -> Loras:
    """Convert ChatGLM2's modules to GLM's: A and alpha are shared; rows of B and of the magnitude are split.

    Raises:
        KeyError: ChatGLM2 has no such module.
        CheckpointError: the adapter is for a base of another shape.
    """
    converted: Loras = {}
    for module, lora in loras.items():
        names = module_to_glm(module)
        sizes = split_sizes(config) if len(names) > 1 else [len(lora.tensors[B])]
        _check_rows(module, lora, sum(sizes))
        rows = {kind: tensor.split(sizes) for kind, tensor in lora.tensors.items() if kind != A}
        for index, name in enumerate(names):
            parts = {kind: tensors[index] for kind, tensors in rows.items()}
            converted[name] = ModuleLora({A: lora.tensors[A], **parts}, lora.alpha)
    return converted


def fuse_qkv(loras: Mapping[str, ModuleLora], config: ChatGLM2Config, use_rslora: bool) -> Loras:
    """Convert GLM's modules to ChatGLM2's. In the fused projection, rows without an adapter become zeros.

    Raises:
        KeyError: GLM has no such module.
        CheckpointError: DoRA is on only some of queries, keys and values, or the base has another shape.
    """
    groups: dict[str, Loras] = {}
    for name, lora in loras.items():
        groups.setdefault(module_from_glm(name), {})[name.split(".", 3)[-1]] = lora
    return {
        module: _fuse_projections(module, group, split_sizes(config), use_rslora)
        if module.endswith(FUSED_QKV)
        else next(iter(group.values()))
        for module, group in groups.items()
    }


def _fuse_projections(module: str, group: Loras, sizes: list[int], use_rslora: bool) -> ModuleLora:
    """Fuse the adapters of q_proj, k_proj and v_proj. Different A are stacked, and B becomes block-diagonal."""
    present = [group[name] for name in SPLIT_QKV if name in group]
    first = present[0]
    dora = [lora.tensors[MAGNITUDE] for lora in present if MAGNITUDE in lora.tensors]
    if dora and len(dora) < len(SPLIT_QKV):
        raise CheckpointError(module, "DoRA on a part of it", "Use an adapter with all of q_proj, k_proj and v_proj")
    scale = first.scale(use_rslora)
    shared = all(torch.equal(lora.tensors[A], first.tensors[A]) for lora in present)
    if shared and all(lora.alpha == first.alpha for lora in present):
        columns, alpha = dict.fromkeys(SPLIT_QKV, 0), first.alpha
        fused_a = first.tensors[A]
    else:
        ranks = [group[name].rank if name in group else 0 for name in SPLIT_QKV]
        columns = {name: sum(ranks[:index]) for index, name in enumerate(SPLIT_QKV)}
        fused_a = torch.cat([lora.tensors[A] for lora in present])
        alpha = scale * (math.sqrt(sum(ranks)) if use_rslora else sum(ranks))
    fused_b = first.tensors[B].new_zeros(sum(sizes), len(fused_a))
    for name, rows in zip(SPLIT_QKV, fused_b.split(sizes), strict=True):
        if name in group:
            lora = group[name]
            _check_rows(f"{module}, {name}", lora, len(rows))
            rows[:, columns[name] :][:, : lora.rank] = lora.tensors[B] * (lora.scale(use_rslora) / scale)
    return ModuleLora({A: fused_a, B: fused_b} | ({MAGNITUDE: torch.cat(dora)} if dora else {}), alpha)


def _check_rows(module: str, lora: ModuleLora, expected: int) -> None:
    if (rows := len(lora.tensors[B])) != expected:
        found = f"B has {rows} rows, and the base has {expected} there"
        raise CheckpointError(module, found, "Give the --base that the adapter was made for")


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
