"""The arithmetic of variable-length flash attention, one row after the other, on any device."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from kyon_pl.chatglm2.flash4 import INTERFACE


def row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    **options: object,
) -> Tensor:
    """Stands for `varlen_attn`, (tokens, heads, D), and refuses a call that the installed torch's own would refuse."""
    bound = inspect.signature(varlen_attn).bind(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options)
    assert bound.arguments["window_size"] == (-1, 0)
    assert max_q == max_k >= cu_seq_q.diff().max()
    return attention_of_rows(query, key, value, cu_seq_q, cu_seq_k, bound.arguments["scale"])


def attention_of_rows(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, scale: float
) -> Tensor:
    """Causal; the queries of a row are its last tokens."""
    outputs = []
    for row in range(len(cu_seq_q) - 1):
        (start, end), (key_start, key_end) = cu_seq_q[row : row + 2].tolist(), cu_seq_k[row : row + 2].tolist()
        q = query[start:end].transpose(0, 1)
        k, v = (x[key_start:key_end].transpose(0, 1) for x in (key, value))
        seen = torch.ones(q.shape[1], k.shape[1], device=q.device).tril(k.shape[1] - q.shape[1]).bool()
        output = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)
        outputs.append(output.transpose(0, 1))
    return torch.cat(outputs)


class Flash4(ModuleType):
    """Stands for `flash_attn.cute.interface` of flash-attn-4 4.0.0b36: the same signatures as far as they are used."""

    def __init__(self) -> None:
        super().__init__(INTERFACE)
        self.calls: list[str] = []
        self.error = 0.0  # added to the output

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        causal: bool,
        return_lse: bool,
    ) -> tuple[Tensor, Tensor]:
        assert causal
        assert return_lse
        assert max_seqlen_q == max_seqlen_k >= cu_seqlens_k.diff().max()
        self.calls.append("forward")
        output = attention_of_rows(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale) + self.error
        sums = [scores.logsumexp(-1) for *_, scores in rows_of(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale)]
        return output, torch.cat(sums, dim=1)

    def _flash_attn_bwd(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        dout: Tensor,
        lse: Tensor,
        softmax_scale: float,
        causal: bool,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        deterministic: bool,
    ) -> tuple[Tensor, ...]:
        assert causal
        assert out.shape == dout.shape == q.shape
        assert lse.shape == (q.shape[1], q.shape[0])
        assert deterministic == torch.are_deterministic_algorithms_enabled()
        self.calls.append("backward")
        dtype = q.dtype
        q, k, v, out, dout, lse = (x.double() for x in (q, k, v, out, dout, lse))
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        groups = k.shape[1]
        for tokens, keys, scores in rows_of(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale):
            gradient, output = (x[tokens].transpose(0, 1) for x in (dout, out))  # (heads, tokens, D), as below
            row_q, row_k, row_v = q[tokens].transpose(0, 1), per_head(k[keys], q), per_head(v[keys], q)
            shares = (scores - lse[:, tokens, None]).exp()
            inner = gradient @ row_v.transpose(1, 2) - (gradient * output).sum(-1, keepdim=True)
            of_scores = shares * inner * softmax_scale
            dq[tokens] = (of_scores @ row_k).transpose(0, 1)
            for total, of_heads in ((dk, of_scores.transpose(1, 2) @ row_q), (dv, shares.transpose(1, 2) @ gradient)):
                total[keys] = of_heads.unflatten(0, (groups, -1)).sum(1).transpose(0, 1)
        return dq.to(dtype), dk.to(dtype), dv.to(dtype)


def rows_of(
    q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, scale: float
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The places of each row in queries and keys, and its masked scores, (heads, tokens, keys)."""
    for row in range(len(cu_seq_q) - 1):
        tokens, keys = (slice(*bounds[row : row + 2].tolist()) for bounds in (cu_seq_q, cu_seq_k))
        scores = scale * q[tokens].transpose(0, 1) @ per_head(k[keys], q).transpose(1, 2)
        unseen = torch.ones(scores.shape[1:]).triu(scores.shape[2] - scores.shape[1] + 1).bool()
        yield tokens, keys, scores.masked_fill(unseen, -torch.inf)


def per_head(of_groups: Tensor, q: Tensor) -> Tensor:
    """(keys, groups, D) to (heads, keys, D)."""
    return of_groups.repeat_interleave(q.shape[1] // of_groups.shape[1], dim=1).transpose(0, 1)


def install_flash4(monkeypatch: pytest.MonkeyPatch) -> Flash4:
    """Put it where flash-attn-4 would be."""
    module = Flash4()
    monkeypatch.setitem(sys.modules, INTERFACE, module)
    return module
