"""The frozen weights of the decoder layers: in the compute precision, nf4 or fp8."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from peft import LoraConfig
from torch import Tensor, library, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.nn.functional import ScalingType

from kyon_pl.chatglm2.checkpoint import Quantize
from kyon_pl.errors import MachineError, SettingError
from kyon_pl.imports import need_package

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
# a row of zeros has no largest value to scale by
_LEAST = 1e-12


class Fp8Linear(nn.Linear):
    """A linear layer whose frozen weight is multiplied in e4m3, forward and for the input's gradient.

    Both products want the weight with their own contracted channels side by side, each with its own scales, so there
    are two copies: together they take what one does in half precision. Activations and gradients are scaled token by
    token when they come. Sums are float32 in the matrix units; outputs are bfloat16.

    The copies are kept as bytes: PEFT would take the dtype of a floating-point weight for the adapter's own.

    Args:
        weight: (N, K), on its device, in any floating-point dtype.
        bias: (N,), or None; in bfloat16.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, bias=False, device="meta")
        self.register_parameter("bias", bias)
        forward, forward_scales = quantize_rows(weight)
        backward, backward_scales = quantize_rows(weight.T.contiguous())
        # parameters, all of them: DDP would send buffers around at every step
        self.weight, self.weight_transposed, self.scales, self.scales_transposed = (
            nn.Parameter(kept, requires_grad=False)
            for kept in (forward.view(torch.uint8), backward.view(torch.uint8), forward_scales.T, backward_scales.T)
        )

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) in any dtype to (..., N) in bfloat16."""
        copies = self.weight, self.scales, self.weight_transposed, self.scales_transposed
        output: Tensor = _Product.apply(input.flatten(0, -2), *copies)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            output = output + self.bias.to(output.dtype)
        return output.view(*input.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """(M, K) times the transposed weight, (M, N). The weight is frozen, so that nothing but it is kept."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, weight: Tensor, scales: Tensor, transposed: Tensor, t_scales: Tensor
    ) -> Tensor:
        ctx.save_for_backward(transposed, t_scales)
        ctx.dtype = tokens.dtype
        return _multiply(tokens, weight, scales)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        transposed, t_scales = ctx.saved_tensors
        return _multiply(gradient, transposed, t_scales).to(ctx.dtype), None, None, None, None


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each row so that its largest value is the largest of e4m3, and round.

    Args:
        matrix: (rows, columns), floating point.

    Returns:
        (rows, columns) in e4m3; (rows, 1) float32, what to multiply them by.
    """
    scales = matrix.abs().amax(dim=1, keepdim=True).float().clamp(min=_LEAST) / E4M3_MAX
    return (matrix.float() / scales).to(E4M3), scales


def _multiply(tokens: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """(M, K) by the rows of an e4m3 (N, K), kept as bytes, with scales (1, N): (M, N), bfloat16."""
    product: Tensor = _scaled_product(*quantize_rows(tokens), weight, scales)
    return product


# an operator of its own, because torch 2.11 cannot look into scaled_mm when it compiles a layer
@library.custom_op("kyon_pl::scaled_product", mutates_args=())
def _scaled_product(rows: Tensor, row_scales: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    product: Tensor = F.scaled_mm(
        rows,
        weight.view(E4M3).T,
        row_scales,
        ScalingType.RowWise,
        scales,
        ScalingType.RowWise,
        output_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return product


@_scaled_product.register_fake
def _(rows: Tensor, row_scales: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    output: Tensor = rows.new_empty(rows.shape[0], weight.shape[0], dtype=torch.bfloat16)
    return output


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
