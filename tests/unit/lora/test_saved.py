"""PEFT folders of old and current versions, as published: each works or is refused by name."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM
from kyon_pl.errors import CheckpointError, KyonError
from kyon_pl.lora import load_adapter
from kyon_pl.lora.adapter import add_adapter

GOLDEN = Path(__file__).parents[2] / "golden/chatglm2_tiny"
LAYER_0 = "base_model.model.transformer.encoder.layers.0.self_attention.query_key_value"
TODAY = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["query_key_value"]}
# written by PEFT 0.3; PEFT 0.2 had two more keys for merging
PEFT_0_3 = TODAY | {
    "base_model_name_or_path": "THUDM/chatglm2-6b",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "modules_to_save": None,
    "task_type": "CAUSAL_LM",
}
STARTED = TODAY | {"init_lora_weights": False}  # no effect on a saved adapter
PEFT_0_2 = PEFT_0_3 | {"enable_lora": None, "merge_weights": False}

State = dict[str, torch.Tensor]


def golden_state(when: str) -> State:
    tensors = load_file(GOLDEN / "lora.safetensors")
    return {name.removeprefix(f"{when}."): value for name, value in tensors.items() if name.startswith(when)}


def golden_base() -> ChatGLM2ForCausalLM:
    base = ChatGLM2ForCausalLM(ChatGLM2Config.from_pretrained(GOLDEN)).eval()
    weights = load_file(GOLDEN / "forward.safetensors")
    named = {name.removeprefix("weight."): value for name, value in weights.items() if name.startswith("weight.")}
    base.load_state_dict({name: value for name, value in named.items() if not name.endswith("inv_freq")})
    return base


def renamed(state: State, old: str, new: str) -> State:
    return {name.replace(old, new): tensor for name, tensor in state.items()}


def write(folder: Path, state: State, config: object = TODAY, *, pickled: bool = False) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if pickled:
        torch.save(state, folder / "adapter_model.bin")
    else:
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def trained(model: PeftModel) -> State:
    named = model.named_parameters()
    return {name.replace(".default", ""): p.detach() for name, p in named if p.requires_grad}


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(torch.arange(3, 35).reshape(2, 16)).logits


@pytest.mark.parametrize("when", ["init", "final"])
@pytest.mark.parametrize(("config", "pickled"), [(TODAY, False), (PEFT_0_3, True), (PEFT_0_2, True), (STARTED, False)])
def test_a_published_adapter_has_the_golden_state(
    tmp_path: Path, when: str, config: dict[str, Any], pickled: bool
) -> None:
    state = golden_state(when)
    model = load_adapter(golden_base(), write(tmp_path, state, config, pickled=pickled), "THUDM/chatglm2-6b")
    found = trained(model)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert model.peft_config["default"].base_model_name_or_path == "THUDM/chatglm2-6b"
    assert not model.peft_config["default"].inference_mode
    live = logits(model.eval())
    assert torch.equal(live, logits(PeftModel.from_pretrained(golden_base(), tmp_path).eval())), "equal to plain PEFT"
    assert torch.equal(live, logits(golden_base())) == (when == "init"), "negative control"


@pytest.mark.parametrize(
    "change",
    [
        lambda state: renamed(state, "layers.", "layers._orig_mod."),
        lambda state: renamed(state, "base_model.", "_orig_mod.base_model."),
        lambda state: renamed(state, ".weight", ".default.weight"),
        lambda state: {name: tensor.half() for name, tensor in state.items()},
    ],
    ids=["module compiled", "model compiled", "with the adapter's name", "float16"],
)
def test_other_ways_of_saving_are_read(tmp_path: Path, change: Callable[[State], State]) -> None:
    state = golden_state("final")
    model = load_adapter(golden_base(), write(tmp_path, change(state)), "base")
    found = trained(model)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    torch.testing.assert_close(found, state, rtol=1e-3, atol=1e-6)


def test_another_base_of_the_same_shape_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For each adapter of a model."""
    logging.getLogger("kyon_pl").propagate = True
    write(tmp_path, golden_state("final"), PEFT_0_3)
    message = f"adapter {tmp_path} was made for THUDM/chatglm2-6b, and the base here is THUDM/chatglm3-6b"
    for base_name, expected in (("/models/chatglm2-6b", []), ("THUDM/chatglm3-6b", [message])):
        model = load_adapter(golden_base(), tmp_path, base_name)
        assert caplog.messages == expected
        caplog.clear()
        add_adapter(model, tmp_path, base_name, "second")
        assert caplog.messages == expected


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != f"{LAYER_0}.{name}"}


def with_layer_0(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], State]:
    return lambda state: state | {f"{LAYER_0}.{name}": change(state[f"{LAYER_0}.{name}"]).contiguous()}


def same(state: State) -> State:
    return state


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (
            same,
            TODAY | {"r": 8},
            "layers.0.self_attention.query_key_value.lora_A.weight: (16, 64) instead of (8, 64): "
            "its rank is 16, and adapter_config.json says 8",
        ),
        (with_layer_0("lora_B.weight", lambda b: b[:100]), TODAY, "lora_B.weight: (100, 16) instead of (128, 16)"),
        (without("lora_A.weight"), TODAY, "lora_A.weight: it is missing"),
        (lambda s: renamed(s, "layers.2", "layers.27"), TODAY, "layers.2.self_attention.query_key_value.lora_A.weight"),
        (lambda s: renamed(s, "transformer.encoder.layers", "model.layers"), TODAY, "no such layer in this base"),
        (lambda s: renamed(s, "query_key_value", "q_proj"), TODAY | {"target_modules": ["q_proj"]}, "q_proj"),
        (lambda s: {}, TODAY, "it holds no weights"),
        (lambda s: {k: torch.zeros_like(v) for k, v in s.items()}, TODAY, "A and B of this layer are all zero"),
        (with_layer_0("lora_A.weight", lambda a: a / 0), TODAY, "not finite"),
        (with_layer_0("lora_A.weight", lambda a: a.long()), TODAY, "not a floating-point tensor"),
        (lambda s: s | {f"_orig_mod.{k}": v.clone() for k, v in s.items()}, TODAY, "two of this name"),
        (
            same,
            PEFT_0_2 | {"enable_lora": [True, False, True]},
            "enable_lora: [True, False, True]: the installed PEFT",
        ),
        (
            same,
            TODAY | {"a_new_key": 2, "peft_version": "9.0"},
            "a_new_key: 2: the installed PEFT has no such setting (the file is by 9.0)",
        ),
        (same, TODAY | {"peft_type": "PREFIX_TUNING"}, "peft_type: 'PREFIX_TUNING'"),
        (same, TODAY | {"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa': it changes the base's weights"),
        (same, TODAY | {"bias": "all"}, "bias: 'all': it would train weights of the base"),
        (same, {k: v for k, v in TODAY.items() if k != "lora_alpha"}, "lora_alpha: it is missing"),
        (same, TODAY | {"target_modules": "(("}, "adapter"),
        (same, TODAY | {"lora_alpha": math.nan}, "adapter_config.json: lora_alpha: nan is impossible"),
        (same, TODAY | {"alpha_pattern": {"0": math.inf}}, "adapter_config.json: alpha_pattern: 0: inf is impossible"),
        (same, [TODAY], "it holds a list in place of an object"),
    ],
)
def test_invalid_adapters_are_refused_by_name(
    tmp_path: Path, change: Callable[[State], State], config: object, message: str
) -> None:
    write(tmp_path, change(golden_state("final")), config)
    with pytest.raises(CheckpointError) as refusal:
        load_adapter(golden_base(), tmp_path, "base")
    assert message in str(refusal.value)


class Trap:
    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors", "adapter_config.json", ""])
def test_unreadable_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, golden_state("final"), pickled=name.endswith(".bin"))
    if name.endswith(".bin"):
        torch.save({"trap": Trap()}, name)
    elif name:
        Path(name).write_bytes(Path(name).read_bytes()[:40])
    else:
        Path("adapter_model.safetensors").unlink()
    with pytest.raises(KyonError, match=name or "neither adapter_model.safetensors nor"):
        load_adapter(golden_base(), tmp_path, "base")
    assert not Path("executed").exists()
