"""A single adapter in GGUF, for `llama-server --lora`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from kyon_pl.errors import CheckpointError
from kyon_pl.export.gguf.file import Contents, TensorInfo, check_contents, writing_gguf
from kyon_pl.export.gguf.layout import TYPES, Value, module_name
from kyon_pl.export.module_lora import MAGNITUDE, A, B, Loras, ModuleLora

_KINDS = {A: "lora_a", B: "lora_b"}


def write_adapter(file: Path, name: str, loras: Loras, use_rslora: bool) -> None:
    """Write the LoRA weights of all modules in float32, and read them again.

    llama.cpp multiplies B A by alpha / r, with one alpha for the whole file and the r of each module. The scale of a
    module that needs another factor is multiplied into its B.

    Args:
        file: to write.
        name: of the adapter.
        loras: by module of ChatGLM2.
        use_rslora: whether the scale is alpha / sqrt(r).

    Raises:
        KeyError: ChatGLM2 has no such module.
        CheckpointError: the adapter is DoRA, which llama.cpp does not compute; or the file is not what was written.
        OSError: the disk is full.
    """
    for module, lora in loras.items():
        if MAGNITUDE in lora.tensors:
            fix = "Use merge --format gguf, which computes it"
            raise CheckpointError(module, "DoRA's magnitudes, which llama.cpp does not compute", fix)
    alpha = _common_alpha(loras, use_rslora)
    tensors = {
        f"{module_name(module)}.weight.{kind}": tensor
        for module, lora in loras.items()
        for kind, tensor in _scaled(lora, alpha, use_rslora).items()
    }
    contents = Contents(_settings(name, alpha), {key: _info(tensor) for key, tensor in tensors.items()})
    with writing_gguf(file, contents) as writer:
        for key, tensor in tensors.items():
            writer.add(key, tensor)
    check_contents(file, writer)


def _common_alpha(loras: Loras, use_rslora: bool) -> float:
    """The alpha with which alpha / r is the scale of every module; 1 if there is none."""
    alphas = {lora.scale(use_rslora) * lora.rank for lora in loras.values()}
    return float(alphas.pop()) if len(alphas) == 1 else 1.0


def _scaled(lora: ModuleLora, alpha: float, use_rslora: bool) -> dict[str, Tensor]:
    factor = lora.scale(use_rslora) / (alpha / lora.rank)
    return {_KINDS[A]: lora.tensors[A].float(), _KINDS[B]: lora.tensors[B].float() * factor}


def _settings(name: str, alpha: float) -> dict[str, Value]:
    return {"general.type": "adapter", "general.name": name, "adapter.type": "lora", "adapter.lora.alpha": alpha}


def _info(tensor: Tensor) -> TensorInfo:
    return TensorInfo(tuple(tensor.shape), TYPES["f32"][0])
