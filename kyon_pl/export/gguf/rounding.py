"""How far a stored number may be from the number that was to be stored."""

from __future__ import annotations

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from kyon_pl.errors import CheckpointError

Floats = NDArray[np.float32]
F32, F16, BF16, Q8_0 = (GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0"))

_NUMBERS_AT_ONCE = 1 << 22  # the embedding of a 6B would take 1 GB more
_LARGEST = 127  # of the whole numbers of Q8_0
# bits of the significand, and the exponent of the smallest number above zero
_FLOATS = {F32: (24, -149), F16: (11, -24), BF16: (8, -133)}
# Q8_0's scale, one over it, and their product with a number are rounded in float32, each by a part in 2 ** 24: together
# by 127 * 3 / 2 ** 24 of a step, and this is more than that of half a step
_IN_FLOAT32 = 1 + 2**-14


def rounding_bound(numbers: Floats, kind: GGMLQuantizationType) -> Floats:
    """The largest error of rounding to the nearest number that can be stored.

    Of floating point, it is half of the distance between two numbers of that size. A block of Q8_0 is stored as whole
    numbers up to 127 and their scale in float16: half of the scale, and 127 times the error of the scale.

    Args:
        numbers: (rows, columns), whole blocks.
        kind: how they are stored.

    Returns:
        The same shape.
    """
    if kind == Q8_0:
        blocks = numbers.reshape(-1, GGML_QUANT_SIZES[kind][0])
        scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(_LARGEST)
        of_scales = np.spacing(scales.astype(np.float16)).astype(np.float32) / 2
        of_blocks = (scales / 2 + _LARGEST * of_scales) * np.float32(_IN_FLOAT32)
        return np.broadcast_to(of_blocks, blocks.shape).reshape(numbers.shape)
    bits, smallest = _FLOATS[kind]
    _, exponents = np.frexp(numbers)
    bounds: Floats = np.ldexp(np.float32(0.5), np.maximum(exponents - bits, smallest))
    return bounds


def check_rounding(name: str, stored: NDArray[np.generic], numbers: Floats, kind: GGMLQuantizationType) -> None:
    """Compare what is stored of a tensor with its numbers.

    Args:
        name: of the tensor, for the error.
        stored: (rows, columns) of a floating point type, or (rows, bytes).
        numbers: (rows, columns), or (channels,).
        kind: how they are stored.

    Raises:
        CheckpointError: a number differs by more than the rounding; with float16, those above 65,504 do.
    """
    stored, numbers = np.atleast_2d(stored), np.atleast_2d(numbers)
    rows = max(1, _NUMBERS_AT_ONCE // numbers.shape[1])
    for start in range(0, len(numbers), rows):
        wanted = numbers[start : start + rows]
        found = dequantize(stored[start : start + rows], kind)
        wrong = ~(np.abs(found - wanted) <= rounding_bound(wanted, kind))  # also if it is NaN
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0])
            message = f"{wanted[place]:.6g} would be {found[place]:.6g} in {kind.name}, which is more than rounding"
            raise CheckpointError(name, message, "Use --quantization f32; if that fails too, use another adapter")
