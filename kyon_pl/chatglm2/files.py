# mypy: allow-untyped-calls
"""The weight files of a model folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers.modeling_utils import load_state_dict

from kyon_pl.errors import CheckpointError, MissingFileError
from kyon_pl.files import read_json_object

Shapes = dict[str, tuple[int, ...]]

# Published with the weights, but derived from the configuration: attention.rotary_angles computes it.
INV_FREQ = "transformer.rotary_pos_emb.inv_freq"

# What torch.load and safetensors raise for a damaged file: from pickle's documentation, and from trials.
UNREADABLE = (
    OSError,
    RuntimeError,
    UnpicklingError,
    SafetensorError,
    ValueError,
    LookupError,
    EOFError,
    AttributeError,
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def weight_files(folder: Path) -> list[Path]:
    """List the files of a base's weights. As in transformers, safetensors take precedence over pickles.

    Raises:
        MissingFileError: there are no weights, or a shard of the index is missing.
        CheckpointError: the index is invalid.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    found = "neither model.safetensors nor pytorch_model.bin, whole or in shards with their index.json"
    raise MissingFileError(str(folder), found, "Give the folder of a ChatGLM2 base, or download it again.")


def _shards(index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and name and Path(name).name == name for name in names):
        found = "its weight_map does not map weights to files of this folder"
        raise CheckpointError(str(index), found, "Download this file again.")
    shards = [index.with_name(name) for name in sorted(set(names))]
    for shard in shards:
        if not shard.is_file():
            raise MissingFileError(str(shard), f"not there, though {index.name} names it", "Download the base again.")
    return shards


def read_shapes(files: list[Path]) -> Shapes:
    """Read the shape of each weight by name, without reading the weights.

    Raises:
        CheckpointError: a file cannot be read, or holds something other than floating-point tensors.
    """
    shapes: Shapes = {}
    for file in files:
        try:
            tensors = load_state_dict(file, map_location="meta", weights_only=True)
        except UNREADABLE as error:
            fix = "Download this file again; it may be cut short, or hold something other than tensors."
            raise CheckpointError(str(file), f"weights that cannot be read ({why_unreadable(error)})", fix) from error
        if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
            fix = "Give the weights as a dictionary of tensors by name, as torch.save(model.state_dict()) writes them."
            raise CheckpointError(str(file), f"a {type(tensors).__name__} in place of weights by name", fix)
        for name, tensor in tensors.items():
            _check_dtype(file, name, tensor)
        shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return shapes


def why_unreadable(error: Exception) -> str:
    """The reason of an `UNREADABLE` error in words, without torch's advice to load with `weights_only=False`."""
    if isinstance(error, UnpicklingError):
        return "a damaged pickle, or one of something else than tensors, which is not loaded here"
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")


def _check_dtype(file: Path, name: str, tensor: object) -> None:
    if isinstance(tensor, torch.Tensor) and tensor.dtype in DTYPES:
        return
    kind = str(tensor.dtype).removeprefix("torch.") if isinstance(tensor, torch.Tensor) else type(tensor).__name__
    fix = "Give a base that is not quantized: weights in float16, bfloat16 or float32, each under its own name."
    raise CheckpointError(f"{file}: {name}", f"{kind} in place of a floating-point tensor", fix)


def iterate_weights(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight with its name, memory-mapped from disk, with a progress bar on a terminal.

    Args:
        files: already checked by `read_shapes`.
    """
    total = sum(file.stat().st_size for file in files)
    with tqdm(desc="loading base", total=total, unit="B", unit_scale=True, delay=1, disable=None) as bar:
        for file in files:
            for name, tensor in load_state_dict(file, map_location="cpu", weights_only=True).items():
                if name != INV_FREQ:
                    yield name, tensor
                bar.update(tensor.nbytes)
