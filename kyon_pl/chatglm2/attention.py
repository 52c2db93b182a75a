# mypy: allow-untyped-calls
"""Attention: rotary angles, and variable-length flash attention behind transformers' attention interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kyon_pl.chatglm2.flash4 import PACKAGE, flash4, obstacle_to_flash4
from kyon_pl.errors import SettingError

VARLEN, FA4 = "varlen", "fa4"
FLASH = frozenset((VARLEN, FA4))
"""Implementations of variable-length flash attention: torch's own, and flash-attn-4."""

ROTARY_BASE = 10000.0

# Grouped keys and values are not expanded. torch 2.11 infers the groups; later versions need enable_gqa=True.
_ENABLE_GQA = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def register_attention() -> None:
    """Register `FLASH` with transformers. Their mask is SDPA's, for when they fall back to SDPA."""
    AttentionInterface.register(VARLEN, varlen_attention_forward)
    AttentionInterface.register(FA4, flash4_attention_forward)
    for implementation in FLASH:
        AttentionMaskInterface.register(implementation, sdpa_mask)


def choose_attention(attention: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """Choose the model's `attn_implementation`.

    Args:
        attention: `auto` for the fastest one that works here, or the name of one.
        device: of the model.
        dtype: of the computation (autocast's dtype, if autocast is on).

    Returns:
        The name, and the reason in words.

    Raises:
        SettingError: `attention` is `varlen` or `fa4`, which cannot work here.
    """
    if attention != "auto" and attention not in FLASH:
        return attention, "as set"
    obstacle = _obstacle_to_varlen(device, dtype)
    if obstacle and attention == "auto":
        return "sdpa", f"{obstacle}; packed rows are kept apart by a mask"
    if obstacle:
        fix = "Set it to auto or sdpa: packed rows are then kept apart by a mask."
        raise SettingError(f"attention: {attention}", obstacle, fix)
    reason = f"over packed rows, in {_dtype_name(dtype)} on {_architecture(device)}"
    reason += "; padded batches and generation use sdpa"
    missing = None if attention == VARLEN else obstacle_to_flash4(device)
    if attention == FA4 and missing:
        raise SettingError("attention: fa4", missing, "Set it to auto: torch's flash attention is then used.")
    if attention == VARLEN or missing:
        return VARLEN, f"torch's flash attention {reason}" + (f"; {missing}" if missing else "")
    return FA4, f"flash-attn-4 {version(PACKAGE)} {reason}"


def _obstacle_to_varlen(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"flash attention needs CUDA and this is {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash attention needs float16 or bfloat16 and this run computes in {_dtype_name(dtype)}"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this torch was built without flash attention"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"flash attention needs sm_80 or newer and this GPU is {_architecture(device)}"
    return None


def can_run_varlen(hidden_states: Tensor) -> bool:
    """Whether flash attention supports the device and the dtype (autocast's, if on) that layers use for this input."""
    device_type = hidden_states.device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else hidden_states.dtype
    return device_type == "cuda" and dtype in (torch.float16, torch.bfloat16)


def generation_kernels() -> AbstractContextManager[None]:
    """SDPA without cuDNN, which builds a plan for each new length: about 50 ms per generated token on an H100."""
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def row_starts(position_ids: Tensor) -> Tensor:
    """Mark the first token of each packed row: column 0, and each position that is not the previous one plus 1.

    transformers' rule for packed rows (`find_packed_sequence_indices`).

    Args:
        position_ids: (R, T), int64.

    Returns:
        (R, T), bool.
    """
    not_previous = position_ids[:, :1] - 2
    return position_ids.diff(prepend=not_previous, dim=-1) != 1


def row_bounds(position_ids: Tensor) -> tuple[Tensor, int]:
    """Bounds of the packed rows in the flattened R * T tokens of a batch, and the length of the longest row.

    This synchronizes with the device. A collator can compute the same from row lengths and pass it to the model.

    Args:
        position_ids: (R, T), int64, restarting at each row.

    Returns:
        `cu_seqlens`, (rows + 1,), int32, from 0 to R * T; and `max_seqlen`, in tokens.
    """
    starts = row_starts(position_ids).flatten().nonzero().flatten()
    bounds = torch.cat([starts, starts.new_tensor([position_ids.numel()])])
    return bounds.to(torch.int32), int(bounds.diff().max())


def shared_mask(position_ids: Tensor, cu_seqlens: Tensor, cu_seqlens_k: Tensor, keys: int) -> Tensor:
    """The mask of a batch with shared beginnings: a token sees the keys of its own row up to its own position.

    Args:
        position_ids: (1, T), int64, place of each token in its own row.
        cu_seqlens: (rows + 1,), bounds of the rows in the T tokens.
        cu_seqlens_k: (rows + 1,), bounds of the rows in the keys.
        keys: K, the number of keys of all rows.

    Returns:
        (1, 1, T, K), bool.
    """
    places = torch.arange(keys, device=position_ids.device)
    row_of_query = torch.bucketize(places[: position_ids.shape[1]], cu_seqlens[1:].to(places.dtype), right=True)
    row_of_key = torch.bucketize(places, cu_seqlens_k[1:].to(places.dtype), right=True)
    position_of_key = places - cu_seqlens_k.to(places.dtype)[row_of_key]
    own_row = row_of_query[:, None] == row_of_key
    return (own_row & (position_of_key <= position_ids[0, :, None]))[None, None]


class GatherKeys(torch.autograd.Function):
    """Keys or values of shared tokens, repeated for each row that begins with them.

    Gradients of a token are summed in float32, whatever their dtype: in bfloat16, a beginning of many rows would lose
    the small ones.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, index: Tensor) -> Tensor:
        """(T, groups, D), (K,) to (K, groups, D)."""
        ctx.save_for_backward(index)
        ctx.count = tokens.shape[0]
        return tokens.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """(K, groups, D) to (T, groups, D)."""
        (index,) = ctx.saved_tensors
        summed = gradient.new_zeros((ctx.count, *gradient.shape[1:]), dtype=torch.float32)
        return summed.index_add(0, index, gradient.float()).to(gradient.dtype), None


def rotary_angles(position_ids: Tensor, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine for `apply_rotary_pos_emb`, computed in float32 and rounded once.

    The published code computes the angles in the dtype of the weights, and float16 cannot represent every position
    above 2,048. vLLM uses float32 angles too. They are computed at each forward pass: there is no buffer for
    `model.half()` to round or for a checkpoint to overwrite with rounded values.

    Args:
        position_ids: (R, T), int64.
        channels: rotated channels of a head.
        dtype: of the result.

    Returns:
        Two tensors (R, T, channels), each with the channels / 2 angles repeated twice, as transformers' GLM expects.
    """
    exponents = torch.arange(0, channels, 2, dtype=torch.float32, device=position_ids.device) / channels
    angles = position_ids[..., None].float() * (1.0 / ROTARY_BASE**exponents)
    doubled = torch.cat([angles, angles], dim=-1)
    return doubled.cos().to(dtype), doubled.sin().to(dtype)


def rows_attention_forward(
    kernel: Callable[..., Tensor],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> tuple[Tensor, None]:
    """Causal attention within each packed row, by flash attention over the flattened batch.

    A row may have more keys than queries: its queries are then the last tokens of the row.

    Without `cu_seqlens` this is SDPA; the model omits it with a mask, with a cache, on a CPU and in float32.

    Args:
        kernel: `torch_flash` or `flash_attn_4`.
        module: the attention layer (SDPA reads its number of groups).
        query: (R, heads, T, D), float16 or bfloat16.
        key: (R, groups, T, D).
        value: (R, groups, T, D).
        attention_mask: for SDPA only.
        dropout: for SDPA only; the model has none.
        scaling: of the scores; 1 / sqrt(D) if None.
        cu_seqlens: (rows + 1,), int32, bounds of the rows in the R * T tokens. It may be padded with R * T (empty
            rows), so that its shape is the same for every batch.
        max_seqlen: length of the longest row in tokens, or an upper bound.
        cu_seqlens_k: (rows + 1,), int32, bounds of the rows in the keys; None: those of the queries.

    Returns:
        (R, T, heads, D), and None in place of attention weights.
    """
    if cu_seqlens is None or max_seqlen is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling)
        return output, None
    key_bounds = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
    q, k, v = (_tokens_first(x) for x in (query, key, value))
    attended = kernel(q, k, v, cu_seqlens, key_bounds, max_seqlen, scaling)
    return attended.unflatten(0, (len(query), query.shape[2])), None


def torch_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen: int,
    scale: float | None,
) -> Tensor:
    """Torch's flash attention of rows; arguments and result as of `flash4`, without the softmax's denominator."""
    attended = varlen_attn(
        query,
        key,
        value,
        cu_seqlens,
        cu_seqlens_k,
        max_seqlen,
        max_seqlen,
        scale=scale,
        window_size=(-1, 0),  # causal
        **_ENABLE_GQA,  # type: ignore[arg-type]
    )
    assert isinstance(attended, Tensor)  # a tuple only with return_aux
    return attended


def flash_attn_4(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen: int,
    scale: float | None,
) -> Tensor:
    """As `torch_flash`, by flash-attn-4; `scale` is given."""
    assert scale is not None
    attended: Tensor = flash4(query, key, value, cu_seqlens, cu_seqlens_k, max_seqlen, scale)[0]
    return attended


varlen_attention_forward = partial(rows_attention_forward, torch_flash)
flash4_attention_forward = partial(rows_attention_forward, flash_attn_4)


def _tokens_first(heads_first: Tensor) -> Tensor:
    """(R, heads, T, D) to (R * T, heads, D)."""
    return heads_first.transpose(1, 2).flatten(0, 1)


def decode_attention(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float
) -> Tensor:
    """Attention of one new token per row to the cache, for generation.

    The heads of a group become the queries of one head. With a mask, transformers' SDPA would instead repeat keys and
    values for each head: 16 times the size of the cache for 6B.

    Args:
        query: (R, heads, 1, D).
        key: (R, groups, S, D), for the S slots of the cache.
        value: (R, groups, S, D).
        attention_mask: (R, 1, 1, S), bool or added to the scores; None if every slot is visible.
        scaling: of the scores.

    Returns:
        (R, 1, heads * D).
    """
    grouped = query.reshape(len(query), key.shape[1], -1, query.shape[3])
    attended = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return attended.reshape(len(query), 1, -1)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _architecture(device: torch.device) -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
