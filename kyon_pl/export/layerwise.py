# mypy: allow-untyped-calls
"""Running and writing a model part by part, in the memory of one layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import load_state_dict

from kyon_pl.chatglm2.files import INV_FREQ, weight_files
from kyon_pl.chatglm2.glm import GLM_LAYERS, LAYERS, OUTSIDE_LAYERS
from kyon_pl.disk import default_mode

BYTES_PER_SHARD = 2_000_000_000
PROBE_ROWS, PROBE_TOKENS = 4, 16


@dataclass(frozen=True)
class Parts:
    """Module names of the parts of a model that run one after the other."""

    embedding: str
    layers: str
    norm: str
    head: str

    def names(self, config: PreTrainedConfig) -> list[str]:
        """Names of all parts, in the order of the forward pass."""
        layers = [f"{self.layers}.{number}" for number in range(config.num_hidden_layers)]
        return [self.embedding, *layers, self.norm, self.head]


_EMBEDDING, _NORM, _HEAD = OUTSIDE_LAYERS
CHATGLM_PARTS = Parts(_EMBEDDING, LAYERS, _NORM, _HEAD)
GLM_PARTS = Parts(OUTSIDE_LAYERS[_EMBEDDING], GLM_LAYERS, OUTSIDE_LAYERS[_NORM], OUTSIDE_LAYERS[_HEAD])


def map_weights(folder: Path) -> dict[str, Tensor]:
    """Memory-map all weights of a folder. A pickle of a torch before 1.6 cannot be mapped and is read whole.

    Raises:
        MissingFileError: there are no weights, or a shard of the index is missing.
    """
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        weights |= load_state_dict(file, map_location="cpu", weights_only=True)
    weights.pop(INV_FREQ, None)
    return weights


def empty_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model in evaluation mode whose parameters are views of one NaN and take no memory.

    They are not on the meta device, because PEFT moves an adapter to the device of its base.
    """
    with torch.device("meta"):
        model: PreTrainedModel = model_class._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    for name, parameter in list(model.named_parameters()):
        _set_parameter(model, name, _placeholder(parameter.shape))
    model.eval()
    return model


@contextmanager
def loaded_part(model: PreTrainedModel, part: str, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Load one part of an empty model in float32, with or without LoRA around it; empty it again afterwards."""
    names = names_in(part, weights)
    for name in names:
        _set_parameter(model, name, weights[name].to(torch.float32, copy=True))
    try:
        yield model.get_submodule(part)
    finally:
        for name in names:
            _set_parameter(model, name, _placeholder(base_parameter(model, name).shape))


def run_part(module: nn.Module, hidden: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """The forward pass of one part, without gradients.

    Args:
        module: the embedding, a decoder layer, the norm or the head.
        hidden: the previous part's output, (R, T, C); for the embedding, ids (R, T), int64.
        angles: cosine and sine of T positions, each (1, T, rotated channels), for layers.

    Returns:
        (R, T, C); from the head, logits (R, T, V).
    """
    with torch.no_grad():
        if isinstance(module, GradientCheckpointingLayer):  # transformers' base class of decoder layers
            return cast(Tensor, module(hidden, position_embeddings=angles))
        return cast(Tensor, module(hidden))


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference divided by the norm of `expected`; NaN if a tensor contains NaN."""
    return float((found - expected).norm() / expected.norm())


def probe_ids(vocab_size: int) -> Tensor:
    """A few rows of random ids, (R, T), int64, the same for each vocabulary size."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (PROBE_ROWS, PROBE_TOKENS), generator=generator)


def names_in(part: str, weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights of a part."""
    return [name for name in weights if name.startswith(f"{part}.")]


def base_parameter(model: PreTrainedModel, name: str) -> Tensor:
    """A parameter of the base by its published name, also inside a LoRA layer."""
    path, _, kind = name.rpartition(".")
    return _base_module(model, path).get_parameter(kind).detach()


def _base_module(model: PreTrainedModel, path: str) -> nn.Module:
    module = model.get_submodule(path)
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _set_parameter(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    path, _, kind = name.rpartition(".")
    setattr(_base_module(model, path), kind, nn.Parameter(tensor, requires_grad=False))


def _placeholder(shape: torch.Size) -> Tensor:
    return torch.full((), torch.nan).expand(shape)


class ShardWriter:
    """Writes `model.safetensors`, or shards with an index, named as transformers names them.

    Args:
        folder: to write to.
        bytes_per_shard: maximum size of a shard; a larger tensor gets its own shard.
    """

    def __init__(self, folder: Path, bytes_per_shard: int = BYTES_PER_SHARD) -> None:
        self.folder = folder
        self.bytes_per_shard = bytes_per_shard
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = 0
        self.total_bytes = 0
        self.shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor, which must not share memory with another, and write the shard if it is full."""
        if self.pending and self.pending_bytes + tensor.nbytes > self.bytes_per_shard:
            self._write_shard()
        self.pending[name] = tensor
        self.pending_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def close(self) -> None:
        """Write the last shard, rename all shards (their number is known now), and write the index."""
        self._write_shard()
        count = len(self.shards)
        if count == 1:
            self._shard(1).rename(self.folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self.shards, start=1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors"
            self._shard(number).rename(self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        text = json.dumps(index, indent=2) + "\n"
        (self.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _shard(self, number: int) -> Path:
        return self.folder / f"model-{number:05d}.safetensors"

    def _write_shard(self) -> None:
        self.shards.append(list(self.pending))
        with default_mode(self._shard(len(self.shards))) as file:
            save_file(self.pending, file, metadata={"format": "pt"})
        self.pending = {}
        self.pending_bytes = 0
