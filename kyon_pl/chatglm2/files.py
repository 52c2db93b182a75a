# mypy: allow-untyped-calls
"""The files of a model folder: JSON objects and weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers.modeling_utils import load_state_dict

from kyon_pl.errors import CheckpointError, MissingFileError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is no JSON in UTF-8, or holds something else than one object.
    """
    fix = "Download this file again, or correct it."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(str(path), f"not UTF-8: {error.reason} at byte {error.start + 1}", fix) from None
    except json.JSONDecodeError as error:
        found = f"broken JSON: {error.msg} at character {error.colno}"
        raise CheckpointError(f"{path}, line {error.lineno}", found, fix) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(str(path), f"it cannot be read ({error})", fix) from None
    if not isinstance(content, dict):
        raise CheckpointError(str(path), f"it holds a {type(content).__name__} in place of an object", fix)
    return content


# Published with the weights and derived from the configuration; the model computes it (see attention.rotary_angles).
KNOWN_EXTRA = "transformer.rotary_pos_emb.inv_freq"

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# what torch.load may raise at a damaged file, by the documentation of pickle and by trial
UNREADABLE = (
    OSError,
    RuntimeError,
    UnpicklingError,
    SafetensorError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
)

Shapes = dict[str, tuple[int, ...]]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a base's weights, safetensors before pickle, as transformers chooses.

    Raises:
        MissingFileError: no weights, or a shard that the index names is not there.
        CheckpointError: an index that does not tell which file holds which weight.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [_shard(folder / shard, index) for shard in _shards(index)]
    found = "neither model.safetensors nor pytorch_model.bin, whole or in shards with their index.json"
    raise MissingFileError(
        where=str(folder), found=found, fix="Give the folder of a ChatGLM2 base, or download it again."
    )


def _shards(index: Path) -> list[str]:
    weight_map = read_json_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        found = "its weight_map does not tell which file of this folder holds which weight"
        raise CheckpointError(str(index), found, "Download this file again.")
    return sorted(set(names))


def _shard(path: Path, index: Path) -> Path:
    if not path.is_file():
        found = f"not there, though {index.name} names it"
        raise MissingFileError(where=str(path), found=found, fix="Download the base again.")
    return path


def shapes_in(files: list[Path]) -> Shapes:
    """The shape of every weight by its name; none is read.

    Raises:
        CheckpointError: a file that cannot be read, or holds something else than tensors of floating-point numbers.
    """
    shapes: Shapes = {}
    for file in files:
        try:
            tensors = load_state_dict(file, map_location="meta", weights_only=True)
        except UNREADABLE as error:
            fix = "Download this file again; it may be cut short, or hold something else than tensors."
            raise CheckpointError(str(file), f"weights that cannot be read ({why_unreadable(error)})", fix) from error
        if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
            fix = "Give the weights as a dictionary of tensors by name, as torch.save(model.state_dict()) writes them."
            raise CheckpointError(str(file), f"a {type(tensors).__name__} in place of weights by name", fix)
        for name, tensor in tensors.items():
            _refuse_other_kinds(file, name, tensor)
        shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return shapes


def why_unreadable(error: Exception) -> str:
    """What is wrong with a file of weights, in words; torch's own advise to run the code that such a file may hold."""
    if isinstance(error, UnpicklingError):
        return "a pickle of something else than tensors, which is never run here, or a damaged one"
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")


def _refuse_other_kinds(file: Path, name: str, tensor: object) -> None:
    if isinstance(tensor, torch.Tensor) and tensor.dtype in _DTYPES:
        return
    kind = str(tensor.dtype).removeprefix("torch.") if isinstance(tensor, torch.Tensor) else type(tensor).__name__
    fix = "Give a base that is not quantized: weights in float16, bfloat16 or float32, each under its own name."
    raise CheckpointError(f"{file}: {name}", f"{kind} in place of a tensor of floating-point numbers", fix)


def weights_in(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its name, mapped from disk, behind a progress bar on a terminal.

    Args:
        files: that `shapes_in` has read.
    """
    total = sum(file.stat().st_size for file in files)
    with tqdm(desc="loading base", total=total, unit="B", unit_scale=True, delay=1, disable=None) as bar:
        for file in files:
            for name, tensor in load_state_dict(file, map_location="cpu", weights_only=True).items():
                if name != KNOWN_EXTRA:
                    yield name, tensor
                bar.update(tensor.nbytes)
