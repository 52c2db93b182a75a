"""flash-attn-4 as an operator of torch with a backward pass, so that compiled layers can contain it.

torch 2.11 to 2.13 can register flash-attn-4 by themselves, but expect two results of its forward function, which
returns five since 4.0.0b36.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

PACKAGE = "flash-attn-4"
INTERFACE = "flash_attn.cute.interface"


def obstacle_to_flash4(device: torch.device) -> str | None:
    """Why flash-attn-4 cannot run on this GPU; None if it can."""
    if torch.cuda.get_device_capability(device) < (9, 0):
        return f"{PACKAGE} needs sm_90 or newer"
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        return f"{PACKAGE}, which is faster, is not installed (pip install 'kyon-pl[flash]')"
    return None


@torch.library.custom_op("kyon_pl::flash4", mutates_args=())
def flash4(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Causal attention within each row; the queries of a row are its last tokens.

    Args:
        query: (T, heads, D), float16 or bfloat16.
        key: (K, groups, D).
        value: (K, groups, D).
        cu_seqlens: (rows + 1,), int32, bounds of the rows in the queries.
        cu_seqlens_k: (rows + 1,), int32, bounds of the rows in the keys.
        max_seqlen: length of the longest row in tokens, or an upper bound.
        scale: of the scores.

    Returns:
        (T, heads, D), and the logarithm of the softmax's denominator, (heads, T) float32.
    """
    with torch.no_grad():
        output, log_sum = _interface().flash_attn_varlen_func(
            query.detach(),
            key.detach(),
            value.detach(),
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_k=cu_seqlens_k,
            max_seqlen_q=max_seqlen,
            max_seqlen_k=max_seqlen,
            softmax_scale=scale,
            causal=True,
            return_lse=True,
        )
    return output.contiguous(), log_sum.contiguous()


@torch.library.custom_op("kyon_pl::flash4_backward", mutates_args=())
def flash4_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, given that of `flash4`'s output."""
    with torch.no_grad():
        query_gradient, key_gradient, value_gradient = _interface()._flash_attn_bwd(
            query.detach(),
            key.detach(),
            value.detach(),
            output.detach(),
            gradient.detach().contiguous(),
            log_sum.detach(),
            softmax_scale=scale,
            causal=True,
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_k=cu_seqlens_k,
            max_seqlen_q=max_seqlen,
            max_seqlen_k=max_seqlen,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
    return query_gradient.contiguous(), key_gradient.contiguous(), value_gradient.contiguous()


def _interface() -> Any:
    return importlib.import_module(INTERFACE)


@flash4.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query, memory_format=torch.contiguous_format), query.new_empty(
        (query.shape[1], query.shape[0]), dtype=torch.float32
    )


@flash4_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    return query, key, value


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, cu_seqlens, cu_seqlens_k, ctx.max_seqlen, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, cu_seqlens, cu_seqlens_k)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = flash4_backward(gradient, *ctx.saved_tensors, ctx.max_seqlen, ctx.scale)
    return (*gradients, None, None, None, None)


flash4.register_autograd(_backward, setup_context=_save)
