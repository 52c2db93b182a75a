"""The precision of the frozen base weights."""

from __future__ import annotations

import torch

from kyon_pl.errors import SettingError

_FROZEN_DTYPE = {
    "16-mixed": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "32-true": torch.float32,
}


def frozen_dtype(precision: str) -> torch.dtype:
    """The dtype of the frozen weights under a Lightning precision; whatever is trained is float32 under all of them.

    Frozen weights never receive an update, so float32 copies of them would only cost memory and a cast a step.

    Args:
        precision: `trainer.precision` as Lightning spells it.

    Raises:
        SettingError: a precision in which trained weights would not be float32 (`16-true`, `bf16-true`) or that this
            model was not made for.
    """
    if precision not in _FROZEN_DTYPE:
        raise SettingError(
            where="trainer.precision",
            found=f"'{precision}' would not keep the trained weights in float32, and rounds their small updates away",
            fix="Use 16-mixed, bf16-mixed (Ampere or newer) or 32-true; under the mixed ones the frozen weights are in "
            "half precision anyway",
        )
    return _FROZEN_DTYPE[precision]
