"""Bounds of packed rows, the call of the flash kernel, and the choice of an implementation."""

from __future__ import annotations

import pytest
import torch
from flash_on_cpu import row_by_row
from torch.nn.functional import scaled_dot_product_attention

from kyon_pl.chatglm2 import attention
from kyon_pl.chatglm2.attention import choose_attention, rotary_angles, row_bounds, varlen_attention_forward
from kyon_pl.errors import SettingError

HALF = torch.float16


@pytest.mark.parametrize(
    ("position_ids", "bounds", "longest"),
    [
        ([[0, 1, 2, 3, 4]], [0, 5], 5),
        ([[0, 1, 2, 0, 1, 0]], [0, 3, 5, 6], 3),
        ([[0, 0, 0]], [0, 1, 2, 3], 1),
        ([[0, 1, 2], [0, 1, 0]], [0, 3, 5, 6], 3),  # a row does not continue in the next line
        ([[3, 4, 0, 1]], [0, 2, 4], 2),
    ],
)
def test_row_bounds(position_ids: list[list[int]], bounds: list[int], longest: int) -> None:
    cu_seqlens, max_seqlen = row_bounds(torch.tensor(position_ids))
    assert cu_seqlens.dtype == torch.int32
    assert (cu_seqlens.tolist(), max_seqlen) == (bounds, longest)


def test_varlen_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of inputs and output, for two lines of packed rows, grouped keys and an empty row at the end."""
    monkeypatch.setattr(attention, "varlen_attn", row_by_row)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, generator=generator) for heads in (4, 2, 2))
    cu_seqlens = torch.tensor([0, 3, 5, 9, 10, 10], dtype=torch.int32)
    output, weights = varlen_attention_forward(
        torch.nn.Identity(), query, key, value, None, scaling=0.5, cu_seqlens=cu_seqlens, max_seqlen=4
    )
    rows = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]])
    mask = (rows[:, :, None] == rows[:, None, :]) & torch.ones(5, 5).tril().bool()
    expected = scaled_dot_product_attention(query, key, value, mask[:, None], scale=0.5, enable_gqa=True)
    assert weights is None
    assert (output - expected.transpose(1, 2)).abs().max() < 1e-6


def test_rotary_angles_are_exact_in_half_precision() -> None:
    """float16 cannot represent position 4,097; its angles are exact nevertheless."""
    position_ids = torch.tensor([[4097]])
    exact = [angles.half() for angles in rotary_angles(position_ids, 8, torch.float32)]
    assert all(torch.equal(a, b) for a, b in zip(rotary_angles(position_ids, 8, HALF), exact, strict=True))


def test_choose_attention_on_a_cpu() -> None:
    implementation, reason = choose_attention("auto", torch.device("cpu"), torch.float32)
    assert implementation == "sdpa"
    assert "needs CUDA" in reason
    assert choose_attention("eager", torch.device("cpu"), torch.float32) == ("eager", "as set")
    with pytest.raises(SettingError, match="attention: varlen: flash attention needs CUDA"):
        choose_attention("varlen", torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize(
    ("capability", "dtype", "implementation", "words"),
    [
        ((9, 0), torch.bfloat16, "varlen", "packed rows, in bfloat16 on sm_90"),
        ((8, 0), torch.float16, "varlen", "float16 on sm_80"),
        ((7, 5), torch.float16, "sdpa", "this GPU is sm_75"),
        ((9, 0), torch.float32, "sdpa", "this run computes in float32"),
    ],
)
def test_choose_attention_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    implementation: str,
    words: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    chosen, reason = choose_attention("auto", torch.device("cuda"), dtype)
    assert chosen == implementation
    assert words in reason
