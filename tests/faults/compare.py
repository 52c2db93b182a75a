"""Two checkpoints of one run that went two ways: every tensor, number and word, at tolerance 0."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

MISSING = object()

# All that may differ, each with its reason; a pattern of the dotted name in a checkpoint, or of a file beside it.
# Paths are none of it, since checkpoints hold no absolute ones, nor are times.
EXEMPT = {
    r".*/COMPLETE": "the checksum of a file of pickled values; equal ones are pickled once if they are one object",
}


def differences(left: Any, right: Any, place: str = "") -> Iterator[str]:
    """The places at which two nested values differ, with what stands there."""
    if exempt(place):
        return
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in dict.fromkeys([*left, *right]):
            pair = (left.get(key, MISSING), right.get(key, MISSING))
            yield from differences(*pair, f"{place}.{key}".lstrip("."))
    elif type(left) is not type(right):
        yield f"{place}: {said(left)} and {said(right)}"
    elif isinstance(left, torch.Tensor):
        yield from tensor_differences(left, right, place)
    elif isinstance(left, list | tuple):
        if len(left) != len(right):
            yield f"{place}: {len(left)} and {len(right)} entries"
        for number, pair in enumerate(zip(left, right, strict=False)):
            yield from differences(*pair, f"{place}.{number}")
    elif repr(left) != repr(right):  # of a float all digits, and NaN is itself
        yield f"{place}: {said(left)} and {said(right)}"


def exempt(place: str) -> bool:
    """Whether a place may differ."""
    return any(re.fullmatch(pattern, place) for pattern in EXEMPT)


def said(value: Any) -> str:
    """A value in a few words."""
    return f"{type(value).__name__} {textwrap.shorten(str(value), 60)}" if value is not MISSING else "nothing"


def tensor_differences(left: torch.Tensor, right: torch.Tensor, place: str) -> Iterator[str]:
    """Of dtype, shape and bytes."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        yield f"{place}: {left.dtype} {tuple(left.shape)} and {right.dtype} {tuple(right.shape)}"
    elif not torch.equal(as_bytes(left), as_bytes(right)):
        distance = (left.double() - right.double()).abs().max()
        yield f"{place}: tensors, {distance:.3g} apart at most"


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Its memory, so that -0.0 is not 0.0 and NaN is itself."""
    return tensor.contiguous().flatten().view(torch.uint8)


def checkpoint_differences(left: Path, right: Path) -> list[str]:
    """Of two checkpoint files and the adapter folders beside them."""
    found = list(differences(load(left), load(right)))
    return found + folder_differences(left.with_suffix(""), right.with_suffix(""))


def load(file: Path) -> dict[str, Any]:
    """A checkpoint as Lightning reads it."""
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return checkpoint


def distance(left: Path, right: Path) -> float:
    """Of the adapters in two checkpoints, in the L2 norm, relative to the second."""
    found, expected = (load(file)["state_dict"] for file in (left, right))
    vectors = [torch.cat([state[name].double().flatten() for name in sorted(expected)]) for state in (found, expected)]
    return float((vectors[0] - vectors[1]).norm() / vectors[1].norm())


def folder_differences(left: Path, right: Path) -> list[str]:
    """Of all files of two adapter folders, byte for byte."""
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (left, right)]
    names = sorted(contents[0].keys() | contents[1].keys())
    different = [f"{left.name}/{name}" for name in names if contents[0].get(name) != contents[1].get(name)]
    return [f"{place}: bytes" for place in different if not exempt(place)]


def run_differences(left: Path, right: Path) -> list[str]:
    """Of all checkpoints of two run folders, and of whatever else lies where they lie."""
    folders = left / "checkpoints", right / "checkpoints"
    names, others = ({path.name for path in folder.iterdir()} for folder in folders)
    if names != others:
        return [f"checkpoints: {sorted(names)} and {sorted(others)}"]
    files = sorted(name for name in names if name.endswith(".ckpt"))
    assert files
    return [
        f"{file}: {text}" for file in files for text in checkpoint_differences(folders[0] / file, folders[1] / file)
    ]
