"""Compares flash-attn-4 with torch's flash attention on a batch of the run, before the run relies on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kyon_pl.batch import Batch
from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.chatglm2.attention import flash_attn_4, torch_flash

TOLERANCE = 0.02  # relative; rounding to bfloat16 takes about 0.003
_SEED = 0


def find_difference(config: ChatGLM2Config, batch: Batch, dtype: torch.dtype, device: torch.device) -> str | None:
    """Compare outputs and gradients of both kernels for random queries, keys and values of a batch's rows.

    Args:
        config: has the number and size of the heads.
        batch: a training batch; a padded one needs neither kernel.
        dtype: of the computation.
        device: of the model.

    Returns:
        What is wrong with flash-attn-4 here, in words; None if the kernels agree.
    """
    if batch.cu_seqlens is None or batch.max_seqlen is None:
        return None
    bounds = batch.cu_seqlens.to(device)
    key_bounds = bounds if batch.cu_seqlens_k is None else batch.cu_seqlens_k.to(device)
    tokens, keys = batch.input_ids.numel(), batch.labels.numel()
    generator = torch.Generator(device).manual_seed(_SEED)  # leaves the random state of the run as it is

    def random(count: int, heads: int) -> Tensor:
        shape = count, heads, config.kv_channels
        return torch.randn(shape, generator=generator, device=device, dtype=dtype).requires_grad_()

    heads, groups = config.num_attention_heads, config.multi_query_group_num
    inputs = random(tokens, heads), random(keys, groups), random(keys, groups)
    gradient = random(tokens, heads).detach()
    row_arguments = bounds, key_bounds, batch.max_seqlen, config.kv_channels**-0.5

    def results(kernel: Callable[..., Tensor]) -> list[Tensor]:
        output = kernel(*inputs, *row_arguments)
        return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]

    expected = results(torch_flash)
    try:
        found = results(flash_attn_4)
    except Exception as error:  # it compiles its kernels here, and that compiler has errors of its own kinds
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    pairs = zip(found, expected, strict=True)
    worst = max(float((one.float() - other.float()).norm() / other.float().norm()) for one, other in pairs)
    return None if worst <= TOLERANCE else f"outputs or gradients differ by {worst:.1%}"
