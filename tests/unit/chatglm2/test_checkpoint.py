"""Loading the published layout without running its code; errors name weights that do not fit."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published_layout import tiny_config, write_published_layout
from safetensors.torch import load_file, save_file
from torch import Tensor

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.checkpoint import load_base, random_base
from kyon_pl.chatglm2.files import INV_FREQ
from kyon_pl.errors import CheckpointError, MissingFileError, SettingError

CPU = torch.device("cpu")
WHERE = {"device": CPU, "attn_implementation": "sdpa"}
LAST_SHARD = "pytorch_model-00007-of-00007.bin"


@pytest.fixture(scope="module")
def model() -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    return random_base(tiny_config(), dtype=torch.float16, **WHERE)


@pytest.fixture
def folder(tmp_path: Path, model: ChatGLM2ForCausalLM) -> Path:
    return write_published_layout(tmp_path / "base", model)


def assert_same_weights(found: ChatGLM2ForCausalLM, expected: ChatGLM2ForCausalLM, dtype: torch.dtype) -> None:
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert found.state_dict()[name].dtype == dtype
        assert torch.equal(found.state_dict()[name], tensor.to(dtype)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_published_layout(folder: Path, model: ChatGLM2ForCausalLM, dtype: torch.dtype) -> None:
    loaded = load_base(folder, dtype=dtype, **WHERE)
    assert_same_weights(loaded, model, dtype)
    assert not loaded.training
    assert loaded.config._attn_implementation == "sdpa"
    # no hooks of accelerate remain
    assert not any("forward" in vars(module) for module in loaded.modules())


def shift_angles(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 if name == INV_FREQ else tensor for name, tensor in weights.items()}


def test_published_angles_are_not_used(folder: Path, model: ChatGLM2ForCausalLM) -> None:
    """The file has angles rounded to float16; here they are wrong."""
    change_shards(folder, shift_angles)
    ids = torch.arange(3, 40).unsqueeze(0)
    loaded = load_base(folder, dtype=torch.float32, **WHERE)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model.float()(ids).logits)
    model.half()


def test_saves_and_loads_under_the_published_names(folder: Path, model: ChatGLM2ForCausalLM, tmp_path: Path) -> None:
    load_base(folder, dtype=torch.float16, **WHERE).save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    assert load_file(tmp_path / "saved/model.safetensors").keys() == index["weight_map"].keys() - {INV_FREQ}
    assert "auto_map" not in json.loads((tmp_path / "saved/config.json").read_text())
    assert_same_weights(load_base(tmp_path / "saved", dtype=torch.float16, **WHERE), model, torch.float16)
    assert_same_weights(ChatGLM2ForCausalLM.from_pretrained(folder, dtype=torch.float16), model, torch.float16)


def test_of_generation_settings_only_known_ones_are_read(folder: Path) -> None:
    settings = {"temperature": 0.8, "eos_token_id": [2, 5], "output_hidden_states": "yes", "cache_implementation": 3}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    found = load_base(folder, dtype=torch.float32, **WHERE).generation_config
    assert (found.temperature, found.eos_token_id, found.output_hidden_states) == (0.8, [2, 5], None)
    assert found.cache_implementation is None
    for ids in (["a"], [], "2", True):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id"):
            load_base(folder, dtype=torch.float32, **WHERE)


def change_shards(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    for shard in folder.glob("pytorch_model-*.bin"):
        torch.save(change(torch.load(shard)), shard)


def rename_dense(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("1.self_attention.dense", "1.attention.dense"): tensor for name, tensor in weights.items()}


def drop_layer_1(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weights[name] for name in weights if "layers.1." not in name}


def cut_the_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[:90] if "output_layer" in name else tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_dense, r"1 missing: \S+1.self_attention.dense.weight; 1 unexpected: \S+1.attention.dense.weight\)"),
        (drop_layer_1, r"7 missing: transformer.encoder.layers.1.input_layernorm.weight, .*, \.\.\.\)"),
        (cut_the_head, r"transformer.output_layer.weight \(90, 32\) instead of \(96, 32\)"),
    ],
)
def test_weights_that_do_not_match(
    folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    change_shards(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_base(folder, dtype=torch.float16, **WHERE)


def test_a_truncated_file(folder: Path) -> None:
    content = (folder / LAST_SHARD).read_bytes()
    (folder / LAST_SHARD).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{LAST_SHARD}: weights that cannot be read"):
        load_base(folder, dtype=torch.float16, **WHERE)


class Trap:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.touch, (Path("executed"),)


def test_a_pickle_with_code_is_not_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"transformer.output_layer.weight": Trap()}, folder / LAST_SHARD)
    with pytest.raises(CheckpointError, match=f"{LAST_SHARD}: weights that cannot be read"):
        load_base(folder, dtype=torch.float16, **WHERE)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Trap()))  # negative control
    assert (tmp_path / "executed").exists()


def test_missing_files(folder: Path) -> None:
    (folder / LAST_SHARD).unlink()
    with pytest.raises(MissingFileError, match=f"{LAST_SHARD}: not there"):
        load_base(folder, dtype=torch.float16, **WHERE)
    (folder / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(MissingFileError, match=r"neither model.safetensors nor pytorch_model.bin"):
        load_base(folder, dtype=torch.float16, **WHERE)
    (folder / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"no config.json"):
        load_base(folder, dtype=torch.float16, **WHERE)


def test_a_configuration_that_is_not_implemented(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_bit": 4}))
    with pytest.raises(SettingError, match="quantization_bit: 4"):
        load_base(folder, dtype=torch.float16, **WHERE)


def test_random_base() -> None:
    torch.manual_seed(1)
    first = random_base(tiny_config(), dtype=torch.bfloat16, **WHERE)
    assert {parameter.dtype for parameter in first.parameters()} == {torch.bfloat16}
    assert not first.training
    torch.manual_seed(1)
    assert_same_weights(random_base(tiny_config(), dtype=torch.bfloat16, **WHERE), first, torch.bfloat16)
    eager = random_base(tiny_config(), dtype=torch.bfloat16, device=CPU, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"


AUTO_CLASSES = """
import sys
import kyon_pl.chatglm2
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
folder = sys.argv[1]
for trust in (None, False, True):
    found = [
        type(AutoConfig.from_pretrained(folder, trust_remote_code=trust)),
        type(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)),
        type(AutoModel.from_pretrained(folder, trust_remote_code=trust)),
        type(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), trust_remote_code=trust)),
    ]
    print([f"{kind.__module__}.{kind.__name__}" for kind in found])
"""


def test_auto_classes_are_native_without_a_prompt(folder: Path) -> None:
    """In a new process, for each `trust_remote_code`; a prompt would fail without standard input."""
    command = [sys.executable, "-c", AUTO_CLASSES, str(folder)]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ, check=False)
    assert run.returncode == 0, run.stderr
    native = "kyon_pl.chatglm2.modeling.ChatGLM2ForCausalLM"
    line = str(["kyon_pl.chatglm2.configuration.ChatGLM2Config", native, native, native])
    assert run.stdout.splitlines() == [line] * 3


def test_safetensors_in_shards(model: ChatGLM2ForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_weights(load_base(tmp_path, dtype=torch.float16, **WHERE), model, torch.float16)
    shard = min(tmp_path.glob("model-*.safetensors"))
    save_file({"surplus": torch.zeros(1)} | load_file(shard), shard, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 unexpected: surplus"):
        load_base(tmp_path, dtype=torch.float16, **WHERE)
