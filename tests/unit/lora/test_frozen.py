"""Frozen weights in fp8 and nf4: results, memory, and training an adapter on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapters_made import written_adapter
from peft import LoraConfig
from torch import Tensor, nn

from kyon_pl import ChatGLM2LoRA
from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.chatglm2.checkpoint import Quantize, load_base, random_base
from kyon_pl.doctor.memory import BatchShape, MemorySettings, frozen_bytes
from kyon_pl.errors import MachineError, SettingError
from kyon_pl.lora import attach_lora, check_combination, checkpointed_layers, quantizer, reference_lora
from kyon_pl.lora.frozen import E4M3_MAX, Fp8Linear, fp8_linear, nf4_linear, quantize_rows

CPU = torch.device("cpu")
CONFIG = ChatGLM2Config(
    num_layers=2,
    padded_vocab_size=96,
    hidden_size=64,
    ffn_hidden_size=192,
    kv_channels=16,
    num_attention_heads=4,
    multi_query_group_num=2,
)
nf4: Quantize = partial(nf4_linear, dtype=torch.bfloat16)
QUANTIZE: dict[str, Quantize] = {"nf4": nf4, "fp8": fp8_linear}


def multiplies_fp8() -> bool:
    """Whether this torch has fp8 products on a CPU, as newer versions do."""
    try:
        Fp8Linear(torch.ones(16, 16), None)(torch.ones(16, 16))
    except NotImplementedError:
        return False
    return True


needs_fp8_product = pytest.mark.skipif(not multiplies_fp8(), reason="this torch multiplies fp8 on GPUs only")
FORMATS = [pytest.param(name, marks=needs_fp8_product if name == "fp8" else []) for name in QUANTIZE]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def product(layer: nn.Module, tokens: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of the input."""
    tokens = tokens.detach().clone().requires_grad_()
    output = layer(tokens)
    output.backward(gradient.to(output.dtype))
    assert tokens.grad is not None
    return output.detach(), tokens.grad


@needs_fp8_product
def test_fp8_products_are_close_to_exact_ones() -> None:
    """e4m3 has 3 mantissa bits: up to 6 % error in each factor, about 3 % in the sum of many products."""
    draw = torch.Generator().manual_seed(0)
    linear = nn.Linear(128, 96)
    nn.init.normal_(linear.weight, std=0.02, generator=draw)
    linear.weight.data[3] *= 1000  # a row with another scale
    linear.weight.data[5] = 0
    tokens = torch.randn(2, 32, 128, generator=draw)
    tokens[0, 1] = 0
    gradient = torch.randn(2, 32, 96, generator=draw)
    wanted = product(linear, tokens, gradient)
    quantized = Fp8Linear(linear.weight.data, linear.bias)
    found = product(quantized, tokens, gradient)
    assert [x.shape for x in found] == [x.shape for x in wanted]
    assert found[1].dtype == tokens.dtype
    assert all(0.005 < relative_error(f, w) < 0.05 for f, w in zip(found, wanted, strict=True))
    others = [row for row in range(96) if row not in (3, 5)]  # a single scale would round these to zero
    assert relative_error(found[0][..., others], wanted[0][..., others]) < 0.05
    quantized.scales.data = quantized.scales.roll(1)
    assert relative_error(product(quantized, tokens, gradient)[0], wanted[0]) > 0.5


def test_fp8_has_no_buffers_for_ddp_to_broadcast() -> None:
    layer = Fp8Linear(torch.randn(32, 16), None)
    assert not list(layer.buffers())
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_rows_within_e4m3_are_quantized_exactly() -> None:
    matrix = torch.tensor([[448.0, -2.0, 0.0, 7.0], [0.0, 0.0, 0.0, 0.0], [3.5, 1.75, -3.5, 0.4375]])
    rows, scales = quantize_rows(matrix)
    assert torch.equal(rows.float() * scales, matrix)
    assert rows.float().abs().max() == E4M3_MAX


@pytest.mark.parametrize("name", FORMATS)
def test_a_step_around_quantized_layers(name: str) -> None:
    """Layers are quantized, embedding and head are not; the adapter is float32, its gradient close to the exact one."""
    ids = torch.randint(3, 96, (1, 48), generator=torch.Generator().manual_seed(0))
    gradients: dict[bool, dict[str, Tensor]] = {}
    for quantized in (False, True):
        base = random_base(
            CONFIG,
            dtype=torch.bfloat16,
            device=CPU,
            attn_implementation="sdpa",
            quantize=QUANTIZE[name] if quantized else None,
        )
        base.is_loaded_in_4bit = quantized and name == "nf4"
        kinds = {type(layer).__name__ for layer in base.modules() if isinstance(layer, nn.Linear)}
        assert kinds == ({"Linear", "Fp8Linear" if name == "fp8" else "Linear4bit"} if quantized else {"Linear"})
        assert type(base.transformer.output_layer) is nn.Linear
        torch.manual_seed(0)
        model = attach_lora(base, LoraConfig(r=4, target_modules="all-linear"), "random").train()
        trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
        assert len(trained) == 2 * 4 * 2
        assert {value.dtype for value in trained.values()} == {torch.float32}
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False, skip_logits=True).loss
        loss.backward()
        gradients[quantized] = {key: value.grad for key, value in trained.items() if ".lora_B." in key}
    for key, wanted in gradients[False].items():
        error = relative_error(gradients[True][key], wanted)
        assert 0 < error < 0.35, (key, error)


@pytest.mark.parametrize("name", QUANTIZE)
def test_quantized_weights_take_the_memory_that_the_doctor_predicts(name: str) -> None:
    base = random_base(CONFIG, dtype=torch.bfloat16, device=CPU, attn_implementation="sdpa", quantize=QUANTIZE[name])
    seen: dict[int, int] = {}
    for tensor in [*base.parameters(), *base.buffers()]:
        seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        if state := getattr(tensor, "quant_state", None):
            parts = [part for key, part in state.as_dict().items() if isinstance(part, Tensor) and "map" not in key]
            seen |= {part.data_ptr(): part.nbytes for part in parts}
    settings = MemorySettings(
        precision="bf16-mixed",
        lora=reference_lora(),
        checkpointing="full",
        attention="sdpa",
        packed=True,
        training=BatchShape(rows=1, slots=48, trained_tokens=4),
        validation=None,
        quantization=name,  # type: ignore[arg-type]
    )
    # fp8's scales and nf4's padding are a larger part of such a small model
    assert frozen_bytes(CONFIG, settings) == pytest.approx(sum(seen.values()), rel=0.1)


@needs_fp8_product
def test_a_folder_is_quantized_while_loading(tmp_path: Any) -> None:
    settings: dict[str, Any] = {"dtype": torch.bfloat16, "device": CPU, "attn_implementation": "sdpa"}
    plain = random_base(CONFIG, **settings)
    nn.init.normal_(plain.transformer.encoder.layers[0].self_attention.query_key_value.bias)
    plain.save_pretrained(tmp_path)
    loaded = load_base(tmp_path, quantize=fp8_linear, **settings)
    expected = copy.deepcopy(plain)
    for path, layer in plain.transformer.encoder.named_modules():
        if isinstance(layer, nn.Linear):
            expected.transformer.encoder.set_submodule(path, fp8_linear(layer, layer.weight.data))
    ids = torch.arange(3, 60)[None]
    assert torch.equal(loaded(ids).logits, expected(ids).logits)
    assert not torch.equal(loaded(ids).logits, plain(ids).logits)


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises((SettingError, MachineError)) as raised:
        call()
    return str(raised.value)


def test_incompatible_settings_are_refused_by_name() -> None:
    cuda, half = torch.device("cuda"), torch.float16
    assert "bf16-mixed" in error_of(lambda: quantizer("fp8", half, cuda))
    for kind in ("nf4", "fp8"):
        assert "this is cpu" in error_of(lambda kind=kind: quantizer(kind, torch.bfloat16, CPU))
    assert quantizer(None, half, CPU) is None
    dora = LoraConfig(use_dora=True)
    assert "use_dora" in error_of(lambda: check_combination("fp8", dora, sharded=False, compiled=False))
    assert "model.shard_base" in error_of(lambda: check_combination(None, dora, sharded=True, compiled=False))
    assert "multiples of 16" in error_of(lambda: fp8_linear(nn.Linear(24, 32), torch.zeros(32, 24)))
    check_combination("nf4", dora, sharded=False, compiled=True)
    for quantization, compiled in (("nf4", False), ("fp8", True), (None, True)):
        message = error_of(
            lambda q=quantization, c=compiled: check_combination(q, reference_lora(), sharded=True, compiled=c)
        )
        assert "shard_base" in message
    check_combination(None, reference_lora(), sharded=True, compiled=False)


@pytest.mark.parametrize(("given", "layers"), [("full", 28), ("none", 0), (0, 0), (9, 9), (28, 28)])
def test_checkpointed_layers(given: Any, layers: int) -> None:
    assert checkpointed_layers(given, 28) == layers


@pytest.mark.parametrize("given", [-1, 29, "all", True])
def test_an_invalid_number_of_layers_is_refused(given: Any) -> None:
    assert "model.checkpointing" in error_of(lambda: checkpointed_layers(given, 28))


def test_the_settings_of_an_initial_adapter_are_checked(tmp_path: Any) -> None:
    """DoRA on fp8 is refused also if the adapter's file asks for it."""
    module = ChatGLM2LoRA(base="demo", adapter=str(written_adapter("DoRA and head", tmp_path)), quantization="fp8")
    assert not module.initial_adapter.lora.use_dora
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    module._trainer = SimpleNamespace(strategy=strategy, precision="bf16-mixed", datamodule=None)  # type: ignore[assignment]
    assert "use_dora" in error_of(module.configure_model)
