# mypy: allow-untyped-calls
"""LoRA weights by module, and their conversion between the modules of ChatGLM2 and of transformers' GLM."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from kyon_pl.chatglm2.configuration import ChatGLM2Config
from kyon_pl.chatglm2.glm import FUSED_QKV, SPLIT_QKV, module_from_glm, module_to_glm, split_sizes
from kyon_pl.errors import CheckpointError

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
