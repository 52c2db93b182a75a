"""Numbers in a GGUF are wrong by no more than rounding, and what is read again is what was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize

from kyon_pl.errors import CheckpointError
from kyon_pl.export.gguf.file import Contents, TensorInfo, TensorWriter, check_contents, writing_gguf
from kyon_pl.export.gguf.rounding import Floats, check_rounding, rounding_bound

KINDS = [GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0")]
SHAPE = (128, 96)


def of_all_sizes() -> Floats:
    """Blocks of normal numbers, whose sizes are from those that float16 loses to its largest."""
    rng = np.random.default_rng(0)
    sizes = np.repeat(2.0 ** rng.uniform(-30, 13, (SHAPE[0], SHAPE[1] // 32)), 32, axis=1)
    numbers = (rng.standard_normal(SHAPE) * sizes).astype(np.float32)
    numbers[0] = 0
    return numbers


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_within_its_bound_and_reaches_it(kind: GGMLQuantizationType) -> None:
    numbers = of_all_sizes()
    stored = quantize(numbers, kind)
    check_rounding("one", stored, numbers, kind)
    errors, bounds = np.abs(dequantize(stored, kind) - numbers), rounding_bound(numbers, kind)
    assert kind.name == "F32" or (errors > 0.9 * bounds).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_off_by_one_is_refused(kind: GGMLQuantizationType) -> None:
    """By one unit in the last place, or one of the whole numbers of a block; whichever number it is."""
    numbers = np.random.default_rng(0).uniform(1, 2, SHAPE).astype(np.float32)
    for place in (0, 5 * SHAPE[1] + 40, numbers.size - 1):
        stored = quantize(numbers, kind).copy()
        size_bytes = {"F32": 4, "Q8_0": 1}.get(kind.name, 2)
        block, offset = divmod(place, 32)
        first_byte = block * 34 + 2 + offset if kind.name == "Q8_0" else place * size_bytes
        whole = stored.view(np.uint8).reshape(-1)[first_byte : first_byte + size_bytes].view(f"i{size_bytes}")
        whole += 1 if dequantize(stored, kind).flat[place] >= numbers.flat[place] else -1
        with pytest.raises(CheckpointError, match=f"^blk: {numbers.flat[place]:.6g} would be .* in {kind.name}"):
            check_rounding("blk", stored, numbers, kind)


@pytest.mark.filterwarnings("ignore:overflow")
def test_what_float16_cannot_hold_is_refused() -> None:
    numbers = np.full((1, 32), 65536, dtype=np.float32)
    with pytest.raises(CheckpointError, match=r"65536 would be inf in F16.*Use --quantization f32"):
        check_rounding("blk", quantize(numbers, GGMLQuantizationType.F16), numbers, GGMLQuantizationType.F16)
    check_rounding("blk", quantize(numbers, GGMLQuantizationType.BF16), numbers, GGMLQuantizationType.BF16)


def written(file: Path, kind: GGMLQuantizationType) -> TensorWriter:
    """A file of two tensors of one shape."""
    contents = Contents({"general.name": "two"}, dict.fromkeys(("one", "other"), TensorInfo(SHAPE, kind)))
    with writing_gguf(file, contents) as writer:
        for number, name in enumerate(contents.tensors):
            writer.add(name, torch.from_numpy(np.roll(of_all_sizes(), number)))
    return writer


def flip_a_bit(reader: GGUFReader) -> None:
    reader.tensors[1].data.view(np.uint8)[-1, -1] ^= 1


def swap(reader: GGUFReader) -> None:
    one, other = (tensor.data for tensor in reader.tensors)
    kept = one.copy()
    one[:], other[:] = other, kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("damage", "named"), [(flip_a_bit, "other"), (swap, "one")])
def test_a_file_that_was_damaged_is_refused(
    damage: Callable[[GGUFReader], None], named: str, kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    file = tmp_path / "two.gguf"
    writer = written(file, kind)
    check_contents(file, writer)
    reader = GGUFReader(file, "r+")
    damage(reader)
    reader.data.flush()
    with pytest.raises(CheckpointError, match=f"^two.gguf: {named}: its numbers are not those that were written"):
        check_contents(file, writer)
