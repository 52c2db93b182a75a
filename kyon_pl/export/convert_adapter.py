# mypy: allow-untyped-calls
"""`kyon-pl convert-adapter`: an adapter for transformers' GLM, or back."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from kyon_pl.chatglm2.configuration import ChatGLM2Config, read_config
from kyon_pl.chatglm2.glm import FUSED, PARTS, module_from_glm, module_to_glm, split_sizes
from kyon_pl.demo import fetch_base_config
from kyon_pl.errors import CheckpointError
from kyon_pl.export.side_folder import refuse_existing, side_folder, write_record
from kyon_pl.logs import from_here
from kyon_pl.lora.saved import read_adapter
from kyon_pl.runs.adapters import adapter_base, find_adapter

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
    config = read_config(fetch_base_config(base_name, revision))
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
