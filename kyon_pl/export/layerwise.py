# mypy: allow-untyped-calls
"""Merging layer by layer, shard by shard, in the memory of one layer."""

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

from kyon_pl.chatglm2.files import KNOWN_EXTRA, weight_files
from kyon_pl.chatglm2.glm import GLM_LAYER, LAYER, OUTSIDE_LAYERS

BYTES_PER_SHARD = 2_000_000_000


class ShardWriter:
    """Writes `model.safetensors`, or several with an index, as transformers names them.

    Args:
        folder: where to.
        bytes_per_shard: a shard is closed before it grows beyond this; a larger tensor has one of its own.
    """

    def __init__(self, folder: Path, bytes_per_shard: int = BYTES_PER_SHARD) -> None:
        self.folder = folder
        self.bytes_per_shard = bytes_per_shard
        self.held: dict[str, Tensor] = {}
        self.held_bytes = 0
        self.total_bytes = 0
        self.shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor, which must be nobody else's memory, and write the shard if it is full."""
        if self.held and self.held_bytes + tensor.nbytes > self.bytes_per_shard:
            self._write_shard()
        self.held[name] = tensor
        self.held_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left; now that their number is known, give the shards their names, and write the index."""
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
        self.shards.append(list(self.held))
        file = self._shard(len(self.shards))
        file.touch()
        mode = file.stat().st_mode
        save_file(self.held, file, metadata={"format": "pt"})
        file.chmod(mode)  # safetensors lets nobody but the owner read it
        self.held = {}
        self.held_bytes = 0


PROBE_ROWS, PROBE_TOKENS = 4, 16


@dataclass(frozen=True)
class Parts:
    """What a model calls the parts that are run one after the other."""

    embedding: str
    layers: str
    norm: str
    head: str

    def names(self, config: PreTrainedConfig) -> list[str]:
        """All of them, in the order in which they are run."""
        layers = [f"{self.layers}.{number}" for number in range(config.num_hidden_layers)]
        return [self.embedding, *layers, self.norm, self.head]


_EMBEDDING, _NORM, _HEAD = OUTSIDE_LAYERS
CHATGLM_PARTS = Parts(_EMBEDDING, LAYER, _NORM, _HEAD)
GLM_PARTS = Parts(OUTSIDE_LAYERS[_EMBEDDING], GLM_LAYER, OUTSIDE_LAYERS[_NORM], OUTSIDE_LAYERS[_HEAD])


def mapped_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder, mapped from its files: memory is used while one is looked at, and given back.

    A pickle from before torch 1.6 cannot be mapped and is read whole.

    Raises:
        MissingFileError: no weights, or a shard that the index names is not there.
    """
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        weights |= load_state_dict(file, map_location="cpu", weights_only=True)
    weights.pop(KNOWN_EXTRA, None)
    return weights


def empty_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model for evaluation whose weights take no memory: views of one NaN, so that none is used unnoticed.

    They are not on the meta device, because PEFT moves an adapter to where its base is.
    """
    with torch.device("meta"):
        model: PreTrainedModel = model_class._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    for name, parameter in list(model.named_parameters()):
        _put(model, name, _placeholder(parameter.shape))
    model.eval()
    return model


@contextmanager
def loaded(model: PreTrainedModel, part: str, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """A part of an empty model with its weights in float32, LoRA around them or not; empty again afterwards."""
    names = names_in(part, weights)
    for name in names:
        _put(model, name, weights[name].to(torch.float32, copy=True))
    try:
        yield model.get_submodule(part)
    finally:
        for name in names:
            _put(model, name, _placeholder(weights[name].shape))


def apply(module: nn.Module, hidden: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """What a part makes of what the one before it gave: ids (R, T) to (R, T, C), that to itself, at last to (R, T, V).

    Args:
        module: the embedding, a decoder layer, the norm or the head.
        hidden: of the part before; for the embedding, int64 ids.
        angles: cosine and sine for the T positions, each (1, T, rotated channels); layers alone use them.
    """
    with torch.no_grad():
        if isinstance(module, GradientCheckpointingLayer):  # every decoder layer of transformers is one
            return cast(Tensor, module(hidden, position_embeddings=angles))
        return cast(Tensor, module(hidden))


def difference(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over the norm; NaN if there is one in them."""
    return float((found - wanted).norm() / wanted.norm())


def probe_ids(vocab_size: int) -> Tensor:
    """A few fixed rows of ids, (R, T), int64: the same for every model of this vocabulary."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (PROBE_ROWS, PROBE_TOKENS), generator=generator)


def names_in(part: str, weights: Mapping[str, Tensor]) -> list[str]:
    """The names of the weights that belong to a part."""
    return [name for name in weights if name.startswith(f"{part}.")]


def base_parameter(model: PreTrainedModel, name: str) -> Tensor:
    """A weight of the base by its own name, wherever LoRA has put it."""
    path, _, kind = name.rpartition(".")
    return _base_module(model, path).get_parameter(kind).detach()


def _base_module(model: PreTrainedModel, path: str) -> nn.Module:
    module = model.get_submodule(path)
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _put(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    path, _, kind = name.rpartition(".")
    setattr(_base_module(model, path), kind, nn.Parameter(tensor, requires_grad=False))


def _placeholder(shape: torch.Size) -> Tensor:
    return torch.full((), torch.nan).expand(shape)
