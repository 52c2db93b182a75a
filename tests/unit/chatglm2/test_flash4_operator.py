"""flash-attn-4 as an operator, with the arithmetic of its interface on a CPU."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from flash_on_cpu import Flash4, attention_of_rows, install_flash4
from published_layout import tiny_config
from torch import Tensor

from kyon_pl.chatglm2 import attention, modeling
from kyon_pl.chatglm2.attention import choose_attention, flash4_attention_forward
from kyon_pl.chatglm2.checkpoint import random_base
from kyon_pl.chatglm2.flash4 import flash4
from kyon_pl.errors import SettingError

QUERY_BOUNDS = torch.tensor([0, 6, 8, 11], dtype=torch.int32)  # 6, 2 and 3 new tokens
KEY_BOUNDS = torch.tensor([0, 6, 12, 15], dtype=torch.int32)  # the second row shares four tokens
LONGEST, SCALE = 6, 0.5


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Flash4:
    return install_flash4(monkeypatch)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (11, 4, 8), (15, 2, 8), (15, 2, 8)
    query, key, value = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    return query, key, value


def gradients(output: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((output * torch.arange(output.numel()).view_as(output)).sum(), tensors)


@pytest.mark.parametrize("compiled", [False, True])
def test_output_and_gradients(module: Flash4, compiled: bool) -> None:
    """In one graph, without a break, if it is compiled."""
    call = torch.compile(flash4, fullgraph=True, backend="aot_eager") if compiled else flash4
    tensors = inputs()
    output, log_sum = call(*tensors, QUERY_BOUNDS, KEY_BOUNDS, LONGEST, SCALE)
    expected = attention_of_rows(*tensors, QUERY_BOUNDS, KEY_BOUNDS, SCALE)
    assert torch.equal(output, expected)
    assert not log_sum.requires_grad
    for one, other in zip(gradients(output, tensors), gradients(expected, tensors), strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
    assert module.calls == ["forward", "backward"]


def test_torch_accepts_the_operator(module: Flash4) -> None:
    """Schema, fake tensors, autograd and AOT dispatch, by torch's own checks; also of strided values."""
    query, key, value = inputs()
    strided = torch.randn(15, 2, 16)[..., :8].requires_grad_()
    for third in (value, strided):
        torch.library.opcheck(flash4, (query, key, third, QUERY_BOUNDS, KEY_BOUNDS, LONGEST, SCALE))


def test_deterministic_kernels_are_asked_for(module: Flash4) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        tensors = inputs()
        output, _ = flash4(*tensors, QUERY_BOUNDS, KEY_BOUNDS, LONGEST, SCALE)
        gradients(output, tensors)  # the stand-in compares
    finally:
        torch.use_deterministic_algorithms(False)


def test_layout_of_a_layer(module: Flash4) -> None:
    """Heads first, as transformers has them, and tokens first again."""
    tensors = inputs()
    query, key, value = (x.transpose(0, 1)[None] for x in tensors)
    output, weights = flash4_attention_forward(
        torch.nn.Identity(),
        query,
        key,
        value,
        None,
        scaling=SCALE,
        cu_seqlens=QUERY_BOUNDS,
        max_seqlen=LONGEST,
        cu_seqlens_k=KEY_BOUNDS,
    )
    assert weights is None
    assert torch.equal(output[0], attention_of_rows(*tensors, QUERY_BOUNDS, KEY_BOUNDS, SCALE))


@pytest.mark.parametrize(
    ("capability", "asked", "installed", "chosen", "words"),
    [
        ((9, 0), "auto", True, "fa4", "flash-attn-4 4.0.0b36 over packed rows"),
        ((9, 0), "auto", False, "varlen", "not installed (pip install 'kyon-pl[flash]')"),
        ((9, 0), "varlen", True, "varlen", "torch's flash attention over packed rows"),
        ((8, 0), "auto", True, "varlen", "flash-attn-4 needs sm_90 or newer"),
        ((8, 0), "fa4", True, None, "flash-attn-4 needs sm_90 or newer"),
        ((9, 0), "fa4", False, None, "Set it to auto"),
    ],
)
def test_choice(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    asked: str,
    installed: bool,
    chosen: str | None,
    words: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(attention, "version", lambda name: "4.0.0b36")
    if installed:
        monkeypatch.setattr("kyon_pl.chatglm2.flash4.version", lambda name: "4.0.0b36")
    if chosen is None:
        with pytest.raises(SettingError, match="attention: fa4") as error:
            choose_attention(asked, torch.device("cuda"), torch.bfloat16)
        assert words in str(error.value)
        return
    found, reason = choose_attention(asked, torch.device("cuda"), torch.bfloat16)
    assert found == chosen
    assert words in reason


def test_a_compiled_model(module: Flash4, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer is one graph; loss and gradients are those of sdpa with its mask."""
    monkeypatch.setattr(modeling, "can_run_varlen", lambda hidden: True)
    ids, bounds = torch.arange(3, 18)[None], [0, 6, 12, 15]
    position_ids = torch.cat([torch.arange(end - start) for start, end in pairwise(bounds)])[None]
    found = {}
    for implementation in ("fa4", "sdpa"):
        torch.manual_seed(0)
        config = tiny_config(hidden_size=32, ffn_hidden_size=48, kv_channels=8, initializer_range=0.3)
        device = torch.device("cpu")
        model = random_base(config, dtype=torch.float32, device=device, attn_implementation=implementation)
        if implementation == "fa4":
            for layer in model.transformer.encoder.layers:
                layer.compile(fullgraph=True, backend="aot_eager")
        model.requires_grad_(True)
        loss = model(ids, labels=ids, position_ids=position_ids, skip_logits=True).loss
        parameters = list(model.transformer.encoder.parameters())
        found[implementation] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    assert module.calls.count("forward") == config.num_layers
    assert (found["fa4"] - found["sdpa"]).norm() <= 1e-5 * found["sdpa"].norm()
