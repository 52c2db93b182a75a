# mypy: allow-untyped-calls
"""Attention: rotary angles, and torch's variable-length flash attention behind transformers' attention interface."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kyon_pl.errors import SettingError

VARLEN = "varlen"
ROTARY_BASE = 10000.0

# Grouped keys and values are never expanded. torch 2.11 takes them as they are, later versions want to be told.
_GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def register_attention() -> None:
    """Make `attn_implementation="varlen"` known to transformers, with SDPA's mask for where it has to stand back."""
    AttentionInterface.register(VARLEN, varlen_attention_forward)
    AttentionMaskInterface.register(VARLEN, sdpa_mask)


def choose_attention(attention: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The model's `attn_implementation` for a run, and the reason in words.

    Args:
        attention: `auto` for the fastest that works here, or the name of one.
        device: where the model will compute.
        dtype: what it will compute in (autocast's, if that is on).

    Raises:
        SettingError: `varlen` was asked for by name and cannot work here.
    """
    if attention not in ("auto", VARLEN):
        return attention, "as set"
    obstacle = _obstacle_to_varlen(device, dtype)
    if obstacle is None:
        chosen = f"flash attention over packed rows, in {_word(dtype)} on {_architecture(device)}"
        return VARLEN, f"{chosen}; padded batches and generation use sdpa"
    if attention == VARLEN:
        raise SettingError(
            where="attention: varlen",
            found=obstacle,
            fix="Set it to auto or sdpa: packed rows are then kept apart by a mask.",
        )
    return "sdpa", f"{obstacle}; packed rows are kept apart by a mask"


def _obstacle_to_varlen(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"flash attention needs CUDA and this is {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash attention computes in half precision and this run in {_word(dtype)}"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this torch was built without flash attention"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"flash attention needs sm_80 or newer and this GPU is {_architecture(device)}"
    return None


def can_run_varlen(hidden_states: Tensor) -> bool:
    """Whether flash attention can take what the layers will compute from these: on CUDA, in half precision."""
    device_type = hidden_states.device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else hidden_states.dtype
    return device_type == "cuda" and dtype in (torch.float16, torch.bfloat16)


def kernels_for_replies() -> AbstractContextManager[None]:
    """SDPA without cuDNN, which makes a plan for every new length: some 50 ms at each token of a reply on an H100."""
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def row_starts(position_ids: Tensor) -> Tensor:
    """Where a row begins: at the first column, and wherever the position is not the one before plus 1.

    The same rule as transformers' own for packed rows (`find_packed_sequence_indices`).

    Args:
        position_ids: (R, T), int64.

    Returns:
        (R, T), bool.
    """
    any_distance_but_one = position_ids[:, :1] - 2
    return position_ids.diff(prepend=any_distance_but_one, dim=-1) != 1


def row_bounds(position_ids: Tensor) -> tuple[Tensor, int]:
    """The bounds of the rows among the R * T tokens of a batch laid end to end, and the longest row's length.

    It waits for the device. A collator knows the same from the lengths of its rows and can give it to the model.

    Args:
        position_ids: (R, T), int64, restarting wherever a row begins.

    Returns:
        `cu_seqlens`, (rows + 1,), int32, from 0 to R * T; and `max_seqlen`, in tokens.
    """
    starts = row_starts(position_ids).flatten().nonzero().flatten()
    bounds = torch.cat([starts, starts.new_tensor([position_ids.numel()])])
    return bounds.to(torch.int32), int(bounds.diff().max())


def rotary_angles(position_ids: Tensor, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine for `apply_rotary_pos_emb`, computed in float32 and rounded once, at the end.

    The published code computes the angles in the weights' dtype, and float16 cannot hold every position above 2,048.
    Float32 angles are the better ones, and what vLLM uses. They are made from nothing at each forward: there is no
    buffer for `model.half()` to round, nor for a checkpoint to fill with a rounded one.

    Args:
        position_ids: (R, T), int64.
        channels: channels of a head that are rotated.
        dtype: of the result.

    Returns:
        Two tensors (R, T, channels), each half holding the channels / 2 angles, as transformers' GLM expects.
    """
    exponents = torch.arange(0, channels, 2, dtype=torch.float32, device=position_ids.device) / channels
    angles = position_ids[..., None].float() * (1.0 / ROTARY_BASE**exponents)
    doubled = torch.cat([angles, angles], dim=-1)
    return doubled.cos().to(dtype), doubled.sin().to(dtype)


def varlen_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> tuple[Tensor, None]:
    """Causal attention of every row to itself, by flash attention over the rows laid end to end.

    Without `cu_seqlens` it is SDPA: so the model asks for it where there is a mask, a cache, a CPU or float32.

    Args:
        module: the attention layer, for SDPA's grouping.
        query: (R, heads, T, D), float16 or bfloat16.
        key: (R, groups, T, D).
        value: (R, groups, T, D).
        attention_mask: for SDPA only.
        dropout: for SDPA only; the model has none.
        scaling: of the scores; 1 / sqrt(D) if None.
        cu_seqlens: (rows + 1,), int32, the rows' bounds among the R * T tokens. It may end in repeats of R * T (rows of
            no tokens), which gives it one shape whatever the batch.
        max_seqlen: the longest row in tokens, or any number above it.

    Returns:
        (R, T, heads, D), and None in place of attention weights.
    """
    if cu_seqlens is None or max_seqlen is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling)
        return output, None
    attended = varlen_attn(
        query.transpose(1, 2).flatten(0, 1),
        key.transpose(1, 2).flatten(0, 1),
        value.transpose(1, 2).flatten(0, 1),
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        scale=scaling,
        window_size=(-1, 0),  # all of the past, nothing of the future
        **_GROUPED,  # type: ignore[arg-type]
    )
    assert isinstance(attended, Tensor)  # a tuple only where asked for
    rows, _, tokens, _ = query.shape
    return attended.unflatten(0, (rows, tokens)), None


def attend_from_one(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float) -> Tensor:
    """Attention of one token a row to all that it may see, which is what a reply is made of.

    The heads of a group become the queries of one head. Where there is a mask, transformers' SDPA would write out keys
    and values once for each head, 16 times what the cache holds.

    Args:
        query: (R, heads, 1, D).
        key: (R, groups, S, D); S slots of the cache.
        value: (R, groups, S, D).
        attention_mask: (R, 1, 1, S), bool or to be added to the scores; None: everything is seen.
        scaling: of the scores.

    Returns:
        (R, 1, heads * D).
    """
    grouped = query.reshape(len(query), key.shape[1], -1, query.shape[3])
    attended = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return attended.reshape(len(query), 1, -1)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _architecture(device: torch.device) -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
