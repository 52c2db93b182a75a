"""The frozen base weights: their precision, and the formats that are smaller or faster than it."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from peft import LoraConfig
from torch import Tensor, nn

from kyon_pl.chatglm2.checkpoint import Quantize
from kyon_pl.errors import MachineError, SettingError
from kyon_pl.extras import need_package
from kyon_pl.lora.fp8 import Fp8Linear

Quantization = Literal["nf4", "fp8"]
Checkpointing = Literal["full", "none"] | int

_FROZEN_DTYPE = {
    "16-mixed": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "32-true": torch.float32,
}
_FIRST_WITH_FP8 = (8, 9)


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


def quantizer(quantization: Quantization | None, dtype: torch.dtype, device: torch.device) -> Quantize | None:
    """What turns the linear layers of the decoder into those of a smaller or faster format, one by one as they load.

    Embedding, norms and head stay in the compute precision.

    - `nf4`: 4-bit NormalFloat in blocks of 64 with quantized scales, by bitsandbytes, computed with in `dtype`
      (Dettmers et al., "QLoRA", 2023, section 3): 3.7 GiB in place of 11.6 GiB for 6B, embedding and head included.
    - `fp8`: see `Fp8Linear`.

    Args:
        quantization: the format; None for none.
        dtype: of the compute precision.
        device: where the weights will be.

    Raises:
        SettingError: a precision that the format cannot be used with.
        MachineError: no GPU; bitsandbytes is not installed; or the GPU cannot multiply in 8 bits.
    """
    if quantization and device.type != "cuda":
        found = f"it is for NVIDIA GPUs, and this is {device.type}"
        raise MachineError(f"model.quantization: {quantization}", found, "Leave it out here.")
    if quantization == "nf4":
        need_package("bitsandbytes", "qlora", where="model.quantization: nf4", does="keeps weights in 4 bits")
        return partial(nf4_linear, dtype=dtype)
    if quantization == "fp8":
        if dtype != torch.bfloat16:
            found = f"its products come out in bfloat16 and this run computes in {str(dtype).removeprefix('torch.')}"
            raise SettingError("model.quantization: fp8", found, "Set trainer.precision to bf16-mixed.")
        if (capability := torch.cuda.get_device_capability(device)) < _FIRST_WITH_FP8:
            found = "this GPU (sm_{}{}) cannot multiply in 8 bits; Ada (sm_89) and Hopper can".format(*capability)
            raise MachineError("model.quantization: fp8", found, "Leave it out, or use nf4 where memory is short.")
        return fp8_linear
    return None


def checkpointed_layers(checkpointing: Checkpointing, layers: int) -> int:
    """How many of a model's layers keep only their input for the backward pass.

    Raises:
        SettingError: more than there are, or fewer than none.
    """
    number = {"full": layers, "none": 0}.get(str(checkpointing), checkpointing)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= layers:
        found = f"{checkpointing} layers, of the {layers} that this base has"
        raise SettingError("model.checkpointing", found, f"Set full, none, or a number up to {layers}.")
    return number


def check_combination(quantization: Quantization | None, lora: LoraConfig, *, sharded: bool, compiled: bool) -> None:
    """Refuse what does not go together.

    Raises:
        SettingError: a quantized or compiled base that is to be shared out over ranks; DoRA around fp8 weights.
    """
    if sharded and (quantization or compiled):
        where, found = ("model.quantization", quantization) if quantization else ("model.compile", "true")
        fix = "Set one of the two; nf4 on one GPU needs less memory than a share of the base on each of four."
        raise SettingError(where, f"{found} together with model.shard_base", fix)
    if quantization == "fp8" and lora.use_dora:
        found = "DoRA needs the norms of the base's weights, and PEFT cannot read them in fp8"
        raise SettingError("model.lora.use_dora", found, "Leave it out, or use quantization: nf4 or none.")


def fp8_linear(linear: nn.Linear, weight: Tensor) -> nn.Linear:
    """The fp8 layer for a linear layer and its weight, (N, K).

    Raises:
        SettingError: N or K is no multiple of 16, in which the matrix units take them.
    """
    if any(size % 16 for size in weight.shape):
        found = f"a layer of {tuple(weight.shape)} channels, and the matrix units take multiples of 16"
        raise SettingError("model.quantization: fp8", found, "Leave it out for this base.")
    return Fp8Linear(weight, linear.bias)


def nf4_linear(linear: nn.Linear, weight: Tensor, dtype: torch.dtype) -> nn.Linear:
    """The nf4 layer for a linear layer and its weight, (N, K); it computes in `dtype`."""
    from bitsandbytes.nn.modules import Linear4bit, Params4bit  # it looks for CUDA libraries when it is imported

    quantized = Linear4bit(  # type: ignore[no-untyped-call]
        linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
    )
    kept = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=quantized)
    quantized.register_parameter("weight", kept.to(weight.device))  # type: ignore[misc]
    quantized.register_parameter("bias", linear.bias)
    return quantized
