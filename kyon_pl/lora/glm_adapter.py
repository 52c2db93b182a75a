# mypy: allow-untyped-calls
"""A LoRA adapter of ChatGLM2 as one of transformers' GLM, and back.

Queries, keys and values are rows of one projection here and three projections there. To split is exact: the three share
A, and each has its rows of B. Back, the three are one again if their A are equal. If not, the fused A holds all of
theirs, the fused B is block-diagonal, and the rank is the sum.

Shapes: r rank, N rows of a projection, C columns.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig
from torch import Tensor

from kyon_pl.chatglm2.configuration import ChatGLM2Config
from kyon_pl.chatglm2.glm import FUSED, PARTS, module_from_glm, module_to_glm, split_sizes
from kyon_pl.errors import CheckpointError

A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"


@dataclass(frozen=True)
class Lora:
    """The adapter of one module.

    Attributes:
        tensors: A (r, C), B (N, r), and with DoRA a magnitude (N,), by their names on disk.
        alpha: its `lora_alpha`.
    """

    tensors: dict[str, Tensor]
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return int(self.tensors[A].shape[0])

    def scale(self, use_rslora: bool) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if use_rslora else self.rank)


Loras = dict[str, Lora]


def split(loras: Mapping[str, Lora], config: ChatGLM2Config) -> Loras:
    """ChatGLM2's modules to GLM's: A and alpha are shared, rows of B and of the magnitude are dealt out.

    Raises:
        KeyError: ChatGLM2 has no such module.
        CheckpointError: the adapter is for a base of another shape.
    """
    found: Loras = {}
    for module, lora in loras.items():
        names = module_to_glm(module)
        sizes = split_sizes(config) if len(names) > 1 else [len(lora.tensors[B])]
        _check_rows(module, lora, sum(sizes))
        rows = {kind: tensor.split(sizes) for kind, tensor in lora.tensors.items() if kind != A}
        for place, name in enumerate(names):
            parts = {kind: tensors[place] for kind, tensors in rows.items()}
            found[name] = Lora({A: lora.tensors[A], **parts}, lora.alpha)
    return found


def fuse(loras: Mapping[str, Lora], config: ChatGLM2Config, use_rslora: bool) -> Loras:
    """GLM's modules to ChatGLM2's; a part of the fused projection that has no adapter gets zeros.

    Raises:
        KeyError: GLM has no such module.
        CheckpointError: DoRA on some of queries, keys and values only, or a base of another shape.
    """
    groups: dict[str, Loras] = {}
    for name, lora in loras.items():
        groups.setdefault(module_from_glm(name), {})[name.split(".", 3)[-1]] = lora
    return {
        module: _fuse_parts(module, group, split_sizes(config), use_rslora)
        if module.endswith(FUSED)
        else next(iter(group.values()))
        for module, group in groups.items()
    }


def _fuse_parts(module: str, group: Loras, sizes: list[int], use_rslora: bool) -> Lora:
    present = [group[part] for part in PARTS if part in group]
    first = present[0]
    dora = [lora.tensors[MAGNITUDE] for lora in present if MAGNITUDE in lora.tensors]
    if dora and len(dora) < len(PARTS):
        raise CheckpointError(module, "DoRA on a part of it", "Use an adapter with all of q_proj, k_proj and v_proj")
    scale = first.scale(use_rslora)
    shared = all(torch.equal(lora.tensors[A], first.tensors[A]) for lora in present)
    if shared and all(lora.alpha == first.alpha for lora in present):
        columns, alpha = dict.fromkeys(PARTS, 0), first.alpha
        fused_a = first.tensors[A]
    else:
        ranks = [group[part].rank if part in group else 0 for part in PARTS]
        columns = {part: sum(ranks[:place]) for place, part in enumerate(PARTS)}
        fused_a = torch.cat([lora.tensors[A] for lora in present])
        alpha = scale * (math.sqrt(sum(ranks)) if use_rslora else sum(ranks))
    fused_b = first.tensors[B].new_zeros(sum(sizes), len(fused_a))
    for part, rows in zip(PARTS, fused_b.split(sizes), strict=True):
        if part in group:
            lora = group[part]
            _check_rows(f"{module}, {part}", lora, len(rows))
            rows[:, columns[part] :][:, : lora.rank] = lora.tensors[B] * (lora.scale(use_rslora) / scale)
    return Lora({A: fused_a, B: fused_b} | ({MAGNITUDE: torch.cat(dora)} if dora else {}), alpha)


def _check_rows(module: str, lora: Lora, rows: int) -> None:
    if (found := len(lora.tensors[B])) != rows:
        said = f"B has {found} rows, and the base has {rows} there"
        raise CheckpointError(module, said, "Give the --base that the adapter was made for")


def settings_for(settings: LoraConfig, loras: Mapping[str, Lora], config: ChatGLM2Config) -> LoraConfig:
    """PEFT's settings with the modules, ranks and alphas of these adapters; the rest stays."""
    ranks = {module: lora.rank for module, lora in loras.items()}
    alphas = {module: lora.alpha for module, lora in loras.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    layers = Counter(_leaf(module) for module in loras if ".layers." in module)
    whole = all(count == config.num_layers for count in layers.values())
    return replace(
        settings,
        r=int(rank),
        lora_alpha=alpha,  # type: ignore[arg-type]  # a quotient need not be whole, and PEFT only divides
        rank_pattern=_exceptions(ranks, rank),
        alpha_pattern=_exceptions(alphas, alpha),
        target_modules=sorted({_leaf(module) for module in loras} if whole else loras),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        inference_mode=True,
    )


def named_tensors(loras: Mapping[str, Lora]) -> dict[str, Tensor]:
    """The tensors under their names on disk, each in memory of its own."""
    return {
        f"base_model.model.{module}.{kind}": tensor.clone(memory_format=torch.contiguous_format)
        for module, lora in loras.items()
        for kind, tensor in lora.tensors.items()
    }


def _exceptions(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """Where a value is another than usual: by the last name of the modules if they all have it, else by whole names."""
    by_leaf: dict[str, set[float]] = {}
    for module, value in values.items():
        by_leaf.setdefault(_leaf(module), set()).add(value)
    return {
        _leaf(module) if len(by_leaf[_leaf(module)]) == 1 else module: value
        for module, value in values.items()
        if value != usual
    }


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]
