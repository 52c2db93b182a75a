"""Adapters converted between ChatGLM2 and transformers' GLM give equal logits on the golden weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GlmForCausalLM, PreTrainedModel

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM
from kyon_pl.chatglm2.files import INV_FREQ
from kyon_pl.chatglm2.glm import glm_config, tensor_to_glm
from kyon_pl.errors import CheckpointError, SettingError
from kyon_pl.export.convert_adapter import convert_adapter
from kyon_pl.export.layerwise import relative_difference

GOLDEN = Path(__file__).parents[2] / "golden/chatglm2_tiny"
FOUR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
GLM_FOUR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def config() -> ChatGLM2Config:
    return ChatGLM2Config.from_json_file(GOLDEN / "config.json")


@pytest.fixture
def base(config: ChatGLM2Config) -> ChatGLM2ForCausalLM:
    model = ChatGLM2ForCausalLM(config)
    weights = load_file(GOLDEN / "forward.safetensors")
    names = [name for name in weights if name.startswith("weight.") and not name.endswith(INV_FREQ)]
    model.load_state_dict({name.removeprefix("weight."): weights[name] for name in names})
    return model.eval()


@pytest.fixture
def glm(base: ChatGLM2ForCausalLM) -> GlmForCausalLM:
    model = GlmForCausalLM(glm_config(base.config))
    state = [tensor_to_glm(name, tensor, base.config) for name, tensor in base.state_dict().items()]
    model.load_state_dict({name: tensor for part in state for name, tensor in part.items()})
    return model.eval()


@pytest.fixture
def golden_adapter(tmp_path: Path) -> Path:
    """The original run's adapter, in PEFT's format."""
    folder = tmp_path / "golden"
    settings = LoraConfig(r=16, lora_alpha=32, target_modules=FOUR[:1], base_model_name_or_path=str(GOLDEN))
    settings.save_pretrained(folder)
    tensors = load_file(GOLDEN / "lora.safetensors")
    final = {name.removeprefix("final."): tensor for name, tensor in tensors.items() if name.startswith("final.")}
    save_file(final, folder / WEIGHTS)
    return folder


def made_adapter(model: PreTrainedModel, folder: Path, **settings: object) -> Path:
    """Write an adapter with random weights for a model, without changing the model."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    wrapped = get_peft_model(copy, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in wrapped.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.peft_config["default"].base_model_name_or_path = str(GOLDEN)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return folder


def live_logits(model: PreTrainedModel, adapter: Path) -> Tensor:
    wrapped = PeftModel.from_pretrained(model, adapter).eval()
    ids = load_file(GOLDEN / "forward.safetensors")["input_ids"]
    with torch.no_grad():
        logits: Tensor = wrapped(ids).logits
    wrapped.unload()
    return logits


def settings_of(folder: Path) -> dict[str, object]:
    settings = json.loads((folder / "adapter_config.json").read_text())
    return settings | {"target_modules": sorted(settings["target_modules"])}


def test_the_golden_adapter_to_glm_and_back(
    base: ChatGLM2ForCausalLM, glm: GlmForCausalLM, golden_adapter: Path, tmp_path: Path
) -> None:
    convert_adapter(tmp_path / "glm", str(golden_adapter))
    expected = live_logits(base, golden_adapter)
    assert (live_logits(glm, tmp_path / "glm") - expected).abs().max() < 1e-5
    with torch.no_grad():
        assert (base(load_file(GOLDEN / "forward.safetensors")["input_ids"]).logits - expected).abs().max() > 1e-3

    convert_adapter(tmp_path / "back", str(tmp_path / "glm"), to="chatglm", base=str(GOLDEN))
    before, after = load_file(golden_adapter / WEIGHTS), load_file(tmp_path / "back" / WEIGHTS)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert settings_of(tmp_path / "back") == settings_of(golden_adapter) | {"inference_mode": True}
    assert {path.name for path in (tmp_path / "back").iterdir()} == {WEIGHTS, "adapter_config.json", "kyon_pl.json"}


def test_swapped_rows_are_detected(
    base: ChatGLM2ForCausalLM, glm: GlmForCausalLM, golden_adapter: Path, tmp_path: Path
) -> None:
    """Negative control: keys and values are swapped."""
    convert_adapter(tmp_path / "glm", str(golden_adapter))
    file = tmp_path / "glm" / WEIGHTS
    tensors = load_file(file)
    other = {name: name.replace("k_proj", "?").replace("v_proj", "k_proj").replace("?", "v_proj") for name in tensors}
    save_file({name: tensors[other[name]].clone() for name in tensors}, file)
    assert (live_logits(glm, tmp_path / "glm") - live_logits(base, golden_adapter)).abs().max() > 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "target_modules": FOUR, "use_dora": True},
        {"r": 4, "target_modules": [*FOUR, "output_layer"], "use_rslora": True, "rank_pattern": {"dense": 2}},
        {"r": 4, "target_modules": FOUR[:2], "alpha_pattern": {"layers.1.self_attention.query_key_value": 3}},
        {"r": 4, "target_modules": FOUR, "layers_to_transform": [0, 2], "layers_pattern": "layers"},
    ],
    ids=["DoRA", "rsLoRA and ranks", "alphas", "some layers"],
)
def test_other_settings_to_glm_and_back(
    settings: dict[str, object], base: ChatGLM2ForCausalLM, glm: GlmForCausalLM, tmp_path: Path
) -> None:
    adapter = made_adapter(base, tmp_path / "made", **settings)
    convert_adapter(tmp_path / "glm", str(adapter))
    expected = live_logits(base, adapter)
    assert relative_difference(live_logits(glm, tmp_path / "glm"), expected) < 1e-5
    convert_adapter(tmp_path / "back", str(tmp_path / "glm"), to="chatglm", base=str(GOLDEN))
    before, after = load_file(adapter / WEIGHTS), load_file(tmp_path / "back" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(live_logits(base, tmp_path / "back"), expected)


@pytest.mark.parametrize(
    ("settings", "rank"),
    [
        ({"r": 4, "target_modules": GLM_FOUR}, 12),
        ({"r": 4, "target_modules": GLM_FOUR, "use_rslora": True}, 12),
        ({"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj"], "use_dora": True}, 12),
        ({"r": 4, "target_modules": ["q_proj", "v_proj"]}, 8),
        ({"r": 4, "target_modules": ["k_proj", "o_proj"]}, 4),
        ({"r": 4, "target_modules": GLM_FOUR, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"v_proj": 3}}, 14),
    ],
    ids=["plain", "rsLoRA", "DoRA", "without keys", "keys alone", "different scales"],
)
def test_separate_projections_are_fused(
    settings: dict[str, object], rank: int, base: ChatGLM2ForCausalLM, glm: GlmForCausalLM, tmp_path: Path
) -> None:
    adapter = made_adapter(glm, tmp_path / "made", **settings)
    convert_adapter(tmp_path / "fused", str(adapter), to="chatglm", base=str(GOLDEN))
    assert relative_difference(live_logits(base, tmp_path / "fused"), live_logits(glm, adapter)) < 1e-6
    tensors = load_file(tmp_path / "fused" / WEIGHTS)
    assert {len(tensor) for name, tensor in tensors.items() if "query_key_value.lora_A" in name} == {rank}


def test_adapters_that_cannot_be_converted(glm: GlmForCausalLM, golden_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"module transformer.*is not in GLM"):
        convert_adapter(tmp_path / "made", str(golden_adapter), to="chatglm", base=str(GOLDEN))
    dora = made_adapter(glm, tmp_path / "dora", target_modules=["q_proj", "v_proj"], use_dora=True)
    with pytest.raises(CheckpointError, match="DoRA on a part"):
        convert_adapter(tmp_path / "made", str(dora), to="chatglm", base=str(GOLDEN))
    with pytest.raises(CheckpointError, match="B has 128 rows, and the base has 320"):
        convert_adapter(tmp_path / "made", str(golden_adapter), base="demo")
    (tmp_path / "made").mkdir()
    (tmp_path / "made/file").touch()
    with pytest.raises(SettingError, match="nothing is overwritten"):
        convert_adapter(tmp_path / "made", str(golden_adapter))


def test_an_untrained_adapter_is_refused_and_leaves_no_files(golden_adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(golden_adapter / WEIGHTS)
    save_file({name: t * (0 if "lora_B" in name else 1) for name, t in tensors.items()}, golden_adapter / WEIGHTS)
    with pytest.raises(CheckpointError, match="changes nothing"):
        convert_adapter(tmp_path / "made", str(golden_adapter))
    assert [path.name for path in tmp_path.iterdir()] == ["golden"]
