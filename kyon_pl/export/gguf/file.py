"""GGUF files: written tensor by tensor, and read again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from torch import Tensor

from kyon_pl.errors import CheckpointError
from kyon_pl.export.gguf.layout import ARCHITECTURE, Value
from kyon_pl.export.gguf.rounding import check_rounding
from kyon_pl.export.gguf.vocabulary import Vocabulary

_AGAIN = "Export again; if this persists, check the disk"
_LISTS = ("tokens", "scores", "token_type")


@dataclass(frozen=True)
class TensorInfo:
    """What a GGUF says of a tensor.

    Attributes:
        shape: (rows, columns), or (channels,).
        kind: how its numbers are stored.
    """

    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    @property
    def size_bytes(self) -> int:
        """Its size in the file."""
        elements, block_bytes = GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // elements * block_bytes

    def __str__(self) -> str:
        return f"{self.shape} {self.kind.name}"


@dataclass(frozen=True)
class Contents:
    """Everything in a GGUF but the numbers of its tensors.

    Attributes:
        settings: keys and values, without `general.architecture`.
        tensors: in the order of the file.
        vocabulary: of a model; None for an adapter.
    """

    settings: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]
    vocabulary: Vocabulary | None = None

    @property
    def size_bytes(self) -> int:
        """The size of all tensors in the file."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())


@dataclass
class TensorWriter:
    """Writes the tensors of a GGUF in their order, one at a time.

    Attributes:
        contents: of the file.
        digests: SHA-256 of the bytes of each tensor, for `check_contents`.
    """

    contents: Contents
    _writer: GGUFWriter
    digests: dict[str, bytes] = field(init=False, default_factory=dict)
    _rest: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._rest = list(self.contents.tensors)

    def add(self, name: str, tensor: Tensor) -> None:
        """Quantize and write the next tensor.

        Args:
            name: as in the file.
            tensor: float32, of the shape that `contents` names.

        Raises:
            CheckpointError: a number is stored as another, by more than rounding.
        """
        info = self.contents.tensors[name]
        assert name == self._rest.pop(0)
        assert tuple(tensor.shape) == info.shape
        numbers = tensor.contiguous().numpy()
        stored = quantize(numbers, info.kind)
        check_rounding(name, stored, numbers, info.kind)
        self.digests[name] = _digest(stored)
        self._writer.write_tensor_data(stored)


@contextmanager
def writing_gguf(path: Path, contents: Contents) -> Iterator[TensorWriter]:
    """Write everything but the tensors, and yield the writer of the tensors.

    Raises:
        OSError: the disk is full.
    """
    logging.getLogger("gguf").setLevel(logging.WARNING)  # it logs the byte order
    writer = GGUFWriter(path, ARCHITECTURE)
    for key, value in contents.settings.items():
        _add_value(writer, key, value)
    if contents.vocabulary:
        for key, values in zip(_LISTS, vars(contents.vocabulary).values(), strict=True):
            writer.add_array(f"tokenizer.ggml.{key}", values)
    for name, info in contents.tensors.items():
        nothing = np.dtype(np.float32)  # the type comes from `kind`
        writer.add_tensor_info(name, info.shape, nothing, info.size_bytes, raw_dtype=info.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        tensors = TensorWriter(contents, writer)
        yield tensors
        assert not tensors._rest
    finally:
        writer.close()


def _add_value(writer: GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


class GgufTensors(Mapping[str, Tensor]):
    """The tensors of a GGUF by name. Each is dequantized to float32 when it is asked for.

    Args:
        path: of the file.
        names: names in the file by the names here.
    """

    def __init__(self, path: Path, names: Mapping[str, str]) -> None:
        self._tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        self._names = names

    def __getitem__(self, name: str) -> Tensor:
        found = self._tensors[self._names[name]]
        return torch.from_numpy(np.array(dequantize(found.data, found.tensor_type)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def check_contents(path: Path, written: TensorWriter) -> None:
    """Read a written file again.

    Args:
        path: of the file.
        written: what `writing_gguf` yielded for it.

    Raises:
        CheckpointError: a key, a token, or a tensor's name, shape, type or bytes differ from what should be there.
    """
    contents = written.contents
    try:
        reader = GGUFReader(path)
    except (ValueError, LookupError) as error:
        raise CheckpointError(path.name, f"it cannot be read again ({error})", _AGAIN) from error
    expected: dict[str, object] = {"general.architecture": ARCHITECTURE, **contents.settings}
    if contents.vocabulary:
        lists = zip(_LISTS, vars(contents.vocabulary).values(), strict=True)
        expected |= {f"tokenizer.ggml.{key}": list(values) for key, values in lists}
    found = {key: value.contents() for key, value in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = {
        tensor.name: TensorInfo(tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type)
        for tensor in reader.tensors
    }
    _compare(path, found, {key: _as_stored(value) for key, value in expected.items()})
    _compare(path, tensors, contents.tensors)
    for tensor in reader.tensors:
        if _digest(tensor.data) != written.digests[tensor.name]:
            raise CheckpointError(f"{path.name}: {tensor.name}", "its numbers are not those that were written", _AGAIN)


def _digest(stored: NDArray[np.generic]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(stored).view(np.uint8).data).digest()


def _as_stored(value: object) -> object:
    """A value after rounding to float32."""
    if isinstance(value, list):
        return [_as_stored(one) for one in value]
    return float(np.float32(value)) if isinstance(value, float) else value


def _compare(path: Path, found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            here, there = (f"{values.get(name, 'nothing')!s:.80}" for values in (found, expected))
            raise CheckpointError(f"{path.name}: {name}", f"{here} in the file instead of {there}", _AGAIN)
