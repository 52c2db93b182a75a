"""Every LoRA setting of PEFT keeps the contract (see the checks below) or is refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from published_layout import tiny_config
from safetensors.torch import load_file

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM
from kyon_pl.errors import SettingError
from kyon_pl.lora import attach_lora, load_adapter, trainable_names, write_adapter
from kyon_pl.lora.saved import check_supported

FUSED = ["query_key_value"]
FOUR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
LAYERS = "transformer.encoder.layers"

# PEFT's settings, and the number of adapted layers out of 2 x 4 and the head
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "the reference": ({"r": 16, "lora_alpha": 32, "target_modules": FUSED}, 2),
    "PEFT's own targets": ({"target_modules": None}, 2),
    "four names": ({"target_modules": FOUR}, 8),
    "all-linear": ({"target_modules": "all-linear"}, 8),
    "a pattern": ({"target_modules": r".*layers\.1\.(mlp|self_attention)\.[a-z_0-9]+"}, 4),
    "the head": ({"target_modules": ["output_layer"]}, 1),
    "without one": ({"target_modules": FOUR, "exclude_modules": ["dense"]}, 6),
    "one layer": ({"target_modules": FOUR, "layers_to_transform": [1], "layers_pattern": "layers"}, 4),
    "rsLoRA": ({"target_modules": FOUR, "use_rslora": True}, 8),
    "ranks by layer": ({"target_modules": FOUR, "rank_pattern": {"dense": 2}, "alpha_pattern": {"dense": 3}}, 8),
    "gaussian": ({"target_modules": FOUR, "init_lora_weights": "gaussian"}, 8),
    "orthogonal": ({"target_modules": FOUR, "init_lora_weights": "orthogonal"}, 8),
    "DoRA": ({"target_modules": FOUR, "use_dora": True}, 8),
    "DoRA, rsLoRA": ({"target_modules": "all-linear", "use_dora": True, "use_rslora": True}, 8),
}
ROUNDING = {"orthogonal": 1e-5}  # B x A is zero only by cancellation

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    **{start: ({"init_lora_weights": start}, "changes the base") for start in ("pissa", "pissa_niter_4", "olora")},
    **{start: ({"init_lora_weights": start}, "data") for start in ("eva", "corda", "lora_ga")},
    "mica": ({"init_lora_weights": "mica"}, "does not train B"),
    "random B": ({"init_lora_weights": False}, "would not start from the base"),
    "unknown start": ({"init_lora_weights": "newest"}, "not been tested"),
    "bias": ({"bias": "lora_only"}, "would train"),
    "modules_to_save": ({"modules_to_save": ["output_layer"]}, "would train"),
    "trainable_token_indices": ({"trainable_token_indices": [3]}, "would train"),
    "lora_bias": ({"lora_bias": True}, "no bias that it could be merged into"),
    "use_qalora": ({"use_qalora": True}, "GPTQ"),
    "alora": ({"alora_invocation_tokens": [3]}, "cannot be merged"),
    "arrow": ({"arrow_config": {}}, "other adapters"),
    "bdlora": ({"use_bdlora": {"target_modules_bd_b": FUSED}}, "serving"),
    "kasa": ({"kasa_config": {}}, "changes the base"),
    "monteclora": ({"monteclora_config": {}}, "at random"),
    "velora": ({"velora_config": {}}, "approximations"),
    "layer_replication": ({"layer_replication": [[0, 2], [1, 2]]}, "another model"),
    "target_parameters": ({"target_parameters": ["dense.weight"]}, "outside of layers"),
    "megatron_config": ({"megatron_config": {"a": 1}}, "Megatron"),
    "embedding": ({"target_modules": ["word_embeddings"]}, "names the embedding"),
    "norms": ({"target_modules": ["input_layernorm"]}, "not supported"),
    "no such layer": ({"target_modules": ["q_proj"]}, "q_proj"),
}


def tiny_base() -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    base = ChatGLM2ForCausalLM(tiny_config(initializer_range=0.1)).eval()
    for name, parameter in base.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return base


def settings(changed: dict[str, Any]) -> LoraConfig:
    """PEFT's settings; skips the test if this PEFT is too old for them."""
    known = {field.name for field in fields(LoraConfig)}
    if not changed.keys() <= known or ("mica" in changed.values() and "mica" not in str(LoraConfig.__annotations__)):
        pytest.skip(f"this PEFT has no {changed}")
    return LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "target_modules": FUSED} | changed)


def ids() -> torch.Tensor:
    return torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(ids()).logits


def base_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The base's weights, under its own names."""
    named = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p for name, p in model.named_parameters()
    }
    return {name: parameter.detach().clone() for name, parameter in named.items() if ".lora_" not in name}


def train(model: PeftModel, steps: int) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        model(ids(), labels=ids()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def check_start(model: PeftModel, rounding: float) -> None:
    """The base is unchanged, bit for bit, and frozen; all of the adapter is trained, in float32."""
    base = tiny_base()
    assert base_weights(model).keys() == base_weights(base).keys()
    assert all(torch.equal(value, base_weights(base)[name]) for name, value in base_weights(model).items()), "the base"
    difference = (logits(model) - logits(base)).abs().max()
    assert difference <= rounding, "the output"
    adapter = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    assert trainable_names(model) == set(adapter), "what is trained"
    assert {p.dtype for p in adapter.values()} == {torch.float32}


def check_step(model: PeftModel) -> None:
    """A step changes every B, and nothing of the base."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, 1)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items() if ".lora_" not in name)
    changed = {name: not torch.equal(after[name], value) for name, value in before.items() if ".lora_B." in name}
    assert changed
    assert all(changed.values())


def merged_weight(layer: LoraLayer, config: LoraConfig, name: str) -> torch.Tensor:
    """base + scale x B x A, computed directly; DoRA scales each row to its magnitude."""
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    alpha = next((alpha for end, alpha in config.alpha_pattern.items() if name.endswith(f".{end}")), config.lora_alpha)
    rank = next((rank for end, rank in config.rank_pattern.items() if name.endswith(f".{end}")), config.r)
    assert a.shape[0] == rank
    weight = layer.get_base_layer().weight.detach() + alpha / (math.sqrt(rank) if config.use_rslora else rank) * b @ a
    if not config.use_dora:
        return weight
    magnitude = layer.lora_magnitude_vector["default"].weight.detach()
    return weight * (magnitude / weight.norm(dim=1))[:, None]


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind: str, tmp_path: Path) -> None:
    changed, layers = KINDS[kind]
    config = settings(changed)
    model = attach_lora(tiny_base(), config, "THUDM/chatglm2-6b")
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert len(adapted) == layers
    check_start(model, ROUNDING.get(kind, 0.0))
    check_step(model)
    train(model, 3)
    live = logits(model)
    assert (live - logits(tiny_base())).abs().max() > 0.1

    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    write_adapter(model, trained, tmp_path)
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert set(saved) == {name.replace("vector.default.weight", "vector").replace(".default", "") for name in trained}
    assert len(saved) == len(trained) == layers * (3 if config.use_dora else 2)
    torch.manual_seed(99)
    assert torch.equal(logits(load_adapter(tiny_base(), tmp_path, "THUDM/chatglm2-6b").eval()), live)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_base(), tmp_path).eval()), live), "in plain PEFT"

    expected = {
        name.removeprefix("base_model.model."): merged_weight(layer, config, name) for name, layer in adapted.items()
    }
    merged = model.merge_and_unload()
    for name, weight in expected.items():
        torch.testing.assert_close(merged.get_submodule(name).weight.detach(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(merged), live, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
def test_unsupported_settings_are_refused_by_name(kind: str) -> None:
    changed, reason = REFUSED[kind]
    with pytest.raises(SettingError) as refusal:
        attach_lora(tiny_base(), settings(changed), "THUDM/chatglm2-6b")
    assert reason in str(refusal.value)
    assert refusal.value.where.startswith("model.lora")
    if kind not in ("norms", "no such layer"):  # PEFT refuses these
        assert next(iter(changed)) in str(refusal.value)


@pytest.mark.parametrize(
    ("start", "broken"), [("pissa", "the base"), (False, "the output"), ("mica", "what is trained")]
)
def test_the_checks_fail_for_unsupported_settings(start: str | bool, broken: str) -> None:
    model = get_peft_model(tiny_base(), settings({"init_lora_weights": start}))
    with pytest.raises(AssertionError, match=broken):
        check_start(model, 1e-5)


@dataclass
class LaterConfig(LoraConfig):
    use_something_new: bool = False


def test_an_unknown_setting_of_a_later_peft_is_refused_by_name() -> None:
    check_supported(LaterConfig())
    with pytest.raises(SettingError, match=r"model\.lora\.use_something_new: True: .*not been tested"):
        check_supported(LaterConfig(use_something_new=True))
