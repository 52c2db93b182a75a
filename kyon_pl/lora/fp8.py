"""A frozen linear layer in 8-bit floating point: e4m3 with one scale a row, for matrix units that take it.

Shapes: M tokens, K input channels, N output channels.
Source of the format: Micikevicius et al., "FP8 Formats for Deep Learning" (2022), section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.nn.functional import ScalingType

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
