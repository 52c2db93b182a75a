"""Frozen base weights: their dtype, nf4 or fp8 quantization, and the number of checkpointed layers."""

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

Quantization = Literal["nf4", "fp8"]
Checkpointing = Literal["full", "none"] | int

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0

_FROZEN_DTYPE = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16, "32-true": torch.float32}
_FP8_CAPABILITY = (8, 9)  # the oldest GPUs with fp8 products
_SMALLEST_MAXIMUM = 1e-12  # of a row, so that the scale of a row of zeros is not zero


def frozen_dtype(precision: str) -> torch.dtype:
    """The dtype of frozen weights for a Lightning precision. Trained weights are always float32.

    Frozen weights are never updated, so that a float32 copy would only cost memory and a cast per step.

    Args:
        precision: `trainer.precision`.

    Raises:
        SettingError: trained weights would not be float32 (`16-true`, `bf16-true`), or the precision is not supported.
    """
    if precision not in _FROZEN_DTYPE:
        found = f"'{precision}' would not keep the trained weights in float32, and would round small updates away"
        fix = "Use 16-mixed, bf16-mixed (Ampere or newer) or 32-true; only the frozen weights are in half precision"
        raise SettingError("trainer.precision", found, fix)
    return _FROZEN_DTYPE[precision]


def quantizer(quantization: Quantization | None, dtype: torch.dtype, device: torch.device) -> Quantize | None:
    """The function that quantizes a linear layer of the decoder while the base loads.

    Embedding, norms and head stay in the compute dtype.

    - `nf4`: 4-bit NormalFloat in blocks of 64 with quantized scales, by bitsandbytes; it computes in `dtype` (Dettmers
      et al., "QLoRA", 2023, section 3). 6B takes 3.7 GiB instead of 11.6 GiB, including embedding and head.
    - `fp8`: see `Fp8Linear`.

    Args:
        quantization: the format, or None.
        dtype: of the computation.
        device: of the weights.

    Raises:
        SettingError: the format does not support `dtype`.
        MachineError: there is no GPU, bitsandbytes is not installed, or the GPU does not support fp8.
    """
    if quantization and device.type != "cuda":
        found = f"it needs an NVIDIA GPU, and this is {device.type}"
        raise MachineError(f"model.quantization: {quantization}", found, "Leave it out here.")
    if quantization == "nf4":
        need_package("bitsandbytes", "qlora", where="model.quantization: nf4", does="quantizes weights to 4 bits")
        return partial(nf4_linear, dtype=dtype)
    if quantization == "fp8":
        if dtype != torch.bfloat16:
            found = f"its products are bfloat16, and this run computes in {str(dtype).removeprefix('torch.')}"
            raise SettingError("model.quantization: fp8", found, "Set trainer.precision to bf16-mixed.")
        if (capability := torch.cuda.get_device_capability(device)) < _FP8_CAPABILITY:
            name = "sm_{}{}".format(*capability)
            found = f"this GPU ({name}) does not support fp8; Ada (sm_89) and Hopper do"
            raise MachineError("model.quantization: fp8", found, "Leave it out, or use nf4 to save memory.")
        return fp8_linear
    return None


def checkpointed_layers(checkpointing: Checkpointing, layers: int) -> int:
    """The number of layers with activation checkpointing.

    Raises:
        SettingError: it is negative, or larger than `layers`.
    """
    number = {"full": layers, "none": 0}.get(str(checkpointing), checkpointing)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= layers:
        found = f"{checkpointing} layers, and this base has {layers}"
        raise SettingError("model.checkpointing", found, f"Set full, none, or a number up to {layers}.")
    return number


def check_combination(quantization: Quantization | None, lora: LoraConfig, *, sharded: bool, compiled: bool) -> None:
    """Refuse settings that do not work together.

    Raises:
        SettingError: a sharded base is quantized or compiled, or DoRA is used with a sharded base or with fp8.
    """
    if sharded and (quantization or compiled):
        where, found = ("model.quantization", quantization) if quantization else ("model.compile", "true")
        fix = "Set one of the two; nf4 on one GPU needs less memory than a base sharded over four."
        raise SettingError(where, f"{found} together with model.shard_base", fix)
    if sharded and lora.use_dora:
        found = "DoRA starts from the norms of whole weights, and with model.shard_base each rank reads a share of them"
        raise SettingError("model.lora.use_dora", found, "Leave it out, or model.shard_base.")
    if quantization == "fp8" and lora.use_dora:
        found = "DoRA needs the norms of the base's weights, and PEFT cannot read them in fp8"
        raise SettingError("model.lora.use_dora", found, "Leave it out, or use quantization: nf4 or none.")


def nf4_linear(linear: nn.Linear, weight: Tensor, dtype: torch.dtype) -> nn.Linear:
    """Quantize a linear layer with its weight, (N, K), to nf4. The layer computes in `dtype`."""
    from bitsandbytes.nn.modules import Linear4bit, Params4bit  # its import searches for CUDA libraries

    quantized = Linear4bit(  # type: ignore[no-untyped-call]
        linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
    )
    frozen = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=quantized)
    quantized.register_parameter("weight", frozen.to(weight.device))  # type: ignore[misc]
    quantized.register_parameter("bias", linear.bias)
    return quantized


def fp8_linear(linear: nn.Linear, weight: Tensor) -> nn.Linear:
    """Quantize a linear layer with its weight, (N, K), to fp8.

    Raises:
        SettingError: N or K is not a multiple of 16, as fp8 products need.
    """
    if any(size % 16 for size in weight.shape):
        found = f"a layer of shape {tuple(weight.shape)}, and fp8 products need multiples of 16"
        raise SettingError("model.quantization: fp8", found, "Leave it out for this base.")
    return Fp8Linear(weight, linear.bias)


class Fp8Linear(nn.Linear):
    """A linear layer with a frozen weight in e4m3, for the forward pass and for the gradient of the input.

    fp8 products need both factors contiguous along the contracted channels, so there are two copies of the weight, each
    with its own scales; together they take as much memory as one in half precision. Activations and gradients are
    quantized per token. Sums are float32; outputs are bfloat16.

    The copies are stored as uint8: PEFT would cast the adapter to the dtype of a floating-point weight.

    Args:
        weight: (N, K), on its device, in any floating-point dtype.
        bias: (N,), bfloat16, or None.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, bias=False, device="meta")
        self.register_parameter("bias", bias)
        forward, forward_scales = quantize_rows(weight)
        backward, backward_scales = quantize_rows(weight.T.contiguous())
        # parameters, because DDP broadcasts buffers at each step
        self.weight, self.weight_transposed, self.scales, self.scales_transposed = (
            nn.Parameter(tensor, requires_grad=False)
            for tensor in (forward.view(torch.uint8), backward.view(torch.uint8), forward_scales.T, backward_scales.T)
        )

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) in any dtype to (..., N) in bfloat16."""
        copies = self.weight, self.scales, self.weight_transposed, self.scales_transposed
        output: Tensor = _Fp8Matmul.apply(input.flatten(0, -2), *copies)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            output = output + self.bias.to(output.dtype)
        return output.view(*input.shape[:-1], -1)


class _Fp8Matmul(torch.autograd.Function):
    """(M, K) times the transposed weight, (M, N). The weight has no gradient, so the input is not saved."""

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
    """Scale each row to the range of e4m3, and round.

    Args:
        matrix: (rows, columns), floating point.

    Returns:
        (rows, columns), e4m3; and the scales to multiply it by, (rows, 1), float32.
    """
    scales = matrix.abs().amax(dim=1, keepdim=True).float().clamp(min=_SMALLEST_MAXIMUM) / E4M3_MAX
    return (matrix.float() / scales).to(E4M3), scales


def _multiply(tokens: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """(M, K) times the transposed e4m3 (N, K), stored as uint8, with scales (1, N): (M, N), bfloat16."""
    product: Tensor = _scaled_product(*quantize_rows(tokens), weight, scales)
    return product


# a custom operator, because torch 2.11 cannot trace scaled_mm when it compiles a layer
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
