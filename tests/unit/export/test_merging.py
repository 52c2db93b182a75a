"""A merged model equals base and adapter in both formats; other results are refused and leave no files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapters_made import KINDS, base, live_model, written_adapter
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GlmForCausalLM, PreTrainedModel

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.checkpoint import load_base
from kyon_pl.chatglm2.configuration import read_config
from kyon_pl.chatglm2.files import weight_files
from kyon_pl.demo import BASE
from kyon_pl.errors import CheckpointError, KyonError, MachineError, MissingFileError, SettingError
from kyon_pl.export.formats import FORMATS, FormatName, save_configs, verify
from kyon_pl.export.layerwise import ShardWriter, map_weights, relative_difference
from kyon_pl.export.merge import merge
from kyon_pl.export.merging import live_model as empty_live
from kyon_pl.export.merging import write_weights
from kyon_pl.export.staging import staging_folder
from kyon_pl.runs.integrity import size_and_sha256

IDS = torch.randint(1800, (3, 50), generator=torch.Generator().manual_seed(1))
MODELS = {"chatglm": ChatGLM2ForCausalLM, "glm": GlmForCausalLM}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {kind: written_adapter(kind, folder / kind) for kind in KINDS}


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def read(folder: Path, form: FormatName, dtype: torch.dtype) -> PreTrainedModel:
    return MODELS[form].from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_logits_are_the_live_ones(
    kind: str, form: FormatName, adapters: dict[str, Path], tmp_path: Path
) -> None:
    merge(tmp_path / "merged", str(adapters[kind]), format=form, dtype="float32")
    live = logits(live_model(kind))
    assert relative_difference(logits(read(tmp_path / "merged", form, torch.float32)), live) < 1e-5
    assert relative_difference(logits(base()), live) > 1e-2  # negative control: the adapter has an effect


@pytest.mark.parametrize("form", FORMATS)
def test_half_precision_rounds_no_more_than_the_live_model(
    form: FormatName, adapters: dict[str, Path], tmp_path: Path
) -> None:
    merge(tmp_path / "merged", str(adapters["fused"]), format=form)
    exact = logits(live_model("fused"))
    live_error = relative_difference(logits(live_model("fused", torch.float16)), exact)
    merged = read(tmp_path / "merged", form, torch.float16)
    assert relative_difference(logits(merged), exact) <= 1.5 * live_error < 0.01


def test_the_files_of_the_folder(adapters: dict[str, Path], tmp_path: Path) -> None:
    published = {"config.json", "generation_config.json", "kyon_pl.json", "model.safetensors", "tokenizer_config.json"}
    published |= {"MODEL_LICENSE"}
    expected = {
        "chatglm": published | {"tokenizer.model"},
        "glm": published | {"tokenizer.json", "chat_template.jinja"},
    }
    source = copied_base(tmp_path)
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((source / name).read_text()) | {"auto_map": {"AutoModel": "modeling_chatglm.X"}}
        (source / name).write_text(json.dumps(content))
    (source / "modeling_chatglm.py").write_text("raise RuntimeError\n")
    (source / "MODEL_LICENSE").write_text("terms\n")
    for form in FORMATS:
        merge(tmp_path / form, str(adapters["fused"]), format=form, base=str(source))
        assert {path.name for path in (tmp_path / form).iterdir()} == expected[form]
        record = json.loads((tmp_path / form / "kyon_pl.json").read_text())
        assert record | {"files": None} == {
            **{"base": str(source), "adapter": str(adapters["fused"])},
            **{"format_version": 1, "format": form, "dtype": "float16", "files": None},
        }
        assert record["files"] == {
            path.name: size_and_sha256(path)["sha256"]
            for path in (tmp_path / form).iterdir()
            if path.name != "kyon_pl.json"
        }
        for name in ("config.json", "tokenizer_config.json"):
            assert "auto_map" not in json.loads((tmp_path / form / name).read_text())
    assert json.loads((tmp_path / "chatglm/config.json").read_text())["architectures"] == ["ChatGLMModel"]
    names = load_file(tmp_path / "chatglm/model.safetensors").keys()
    assert names == load_file(BASE / "model.safetensors").keys()


def copied_base(folder: Path) -> Path:
    return Path(shutil.copytree(BASE, folder / "base"))


@pytest.mark.parametrize("form", FORMATS)
def test_verification_detects_changed_weights(form: FormatName, adapters: dict[str, Path], tmp_path: Path) -> None:
    """Negative control: a weight of another dtype or shape, one changed by 0.1 %, one more, one missing."""
    config, file = read_config(BASE), tmp_path / "model.safetensors"
    model = empty_live(config, adapters["fused"], "demo")
    outputs = write_weights(model, map_weights(BASE), tmp_path, FORMATS[form], torch.float32)
    save_configs(BASE, config, tmp_path, FORMATS[form], torch.float32)
    assert verify(tmp_path, FORMATS[form], torch.float32, outputs) < 1e-5
    weights = load_file(file)
    name = next(name for name in weights if ".layers.2." in name and "mlp" in name)
    for changed, error in (
        ({name: weights[name].half()}, r"float16.*float32"),
        ({name: weights[name][1:].clone()}, r"on the disk.*in the model"),
        ({name: weights[name] * 1.001}, r"layers\.2: merged and live differ"),
        ({"one.more": weights[name].clone()}, "nothing in the model"),
    ):
        save_file(weights | changed, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=error):
            verify(tmp_path, FORMATS[form], torch.float32, outputs)
    save_file({key: value for key, value in weights.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="nothing on the disk"):
        verify(tmp_path, FORMATS[form], torch.float32, outputs)


def test_a_wrong_merge_is_detected(adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Linear, "merge", lambda layer, safe_merge: layer.merged_adapters.append("default"))
    with pytest.raises(CheckpointError, match=r"layers\.0: merged and live differ by .* in float32"):
        merge(tmp_path / "merged", str(adapters["fused"]))
    assert not any(tmp_path.iterdir())


def test_overflow_in_float16_is_refused_and_leaves_no_files(adapters: dict[str, Path], tmp_path: Path) -> None:
    """Weights above 65,504 are finite in float32, in which they are merged, and infinite in float16."""
    folder = Path(shutil.copytree(adapters["fused"], tmp_path / "large"))
    weights = load_file(folder / "adapter_model.safetensors")
    large = {name: value * 1e3 for name, value in weights.items()}
    save_file(large, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers.0: merged and live differ by nan.*float32"):
        merge(tmp_path / "merged", str(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["large"]
    merge(tmp_path / "merged", str(folder), dtype="float32")


def test_an_incomplete_base_is_refused(adapters: dict[str, Path], tmp_path: Path) -> None:
    source = copied_base(tmp_path)
    weights = load_file(source / "model.safetensors")
    name = "transformer.encoder.layers.1.self_attention.dense.weight"
    save_file({key: value for key, value in weights.items() if key != name}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"1 missing: {name}"):
        merge(tmp_path / "merged", str(adapters["fused"]), base=str(source))
    (source / "tokenizer.model").unlink()
    with pytest.raises(MissingFileError, match=r"no tokenizer\.model"):
        merge(tmp_path / "merged", str(adapters["fused"]), base=str(source))
    with pytest.raises(SettingError, match="random weights"):
        merge(tmp_path / "merged", str(adapters["fused"]), base="random")
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"bias": "all"}, "bias: 'all'"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"peft_type": "IA3"}, "only 'LORA'"),
    ],
)
def test_unsupported_adapters_are_refused(
    changed: dict[str, str], error: str, adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapters["fused"], tmp_path / "adapter"))
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | changed))
    with pytest.raises(CheckpointError, match=error):
        merge(tmp_path / "merged", str(folder))


def test_an_untrained_adapter_is_refused(adapters: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapters["fused"], tmp_path / "adapter"))
    tensors = load_file(folder / "adapter_model.safetensors")
    zero = {name: tensor * (0 if "lora_B" in name else 1) for name, tensor in tensors.items()}
    save_file(zero, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="changes nothing"):
        merge(tmp_path / "merged", str(folder))


def test_shards(tmp_path: Path) -> None:
    source = load_file(BASE / "model.safetensors")
    writer = ShardWriter(tmp_path, bytes_per_shard=1_000_000)
    for name, tensor in source.items():
        writer.add(name, tensor)
    writer.close()
    files = weight_files(tmp_path)
    assert len(files) > 3
    assert all(file.stat().st_size < 1_010_000 for file in files)
    (tmp_path / "any").touch()
    assert {file.stat().st_mode for file in files} == {(tmp_path / "any").stat().st_mode}
    (tmp_path / "any").unlink()
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))),
        "model.safetensors.index.json",
    }
    for name in ("config.json", "tokenizer.model"):
        shutil.copyfile(BASE / name, tmp_path / name)
    model = load_base(tmp_path, dtype=torch.float16, device=torch.device("cpu"), attn_implementation="sdpa")
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.state_dict().items())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in source.values())


def fail_in(output: Path, error: Exception) -> None:
    with staging_folder(output) as folder:
        (folder / "file").touch()
        raise error


def test_the_staging_folder_is_renamed_or_removed(tmp_path: Path) -> None:
    output, staging = tmp_path / "made", tmp_path / ".made.writing"
    for error, kind in ((OSError(28, "No space left on device"), MachineError), (KyonError("a", "b", "c"), KyonError)):
        with pytest.raises(kind):
            fail_in(output, error)
        assert not any(tmp_path.iterdir())
    staging.mkdir()
    (staging / "left by a killed command").touch()
    output.mkdir()
    with staging_folder(output) as folder:
        assert folder == staging
        (folder / "file").touch()
        with pytest.raises(MachineError, match=r"made: process \d+ on .* is writing it"):
            fail_in(output, OSError())
        assert (folder / "file").is_file()
    assert [path.name for path in output.iterdir()] == ["file"]
    with pytest.raises(SettingError, match="nothing is overwritten"), staging_folder(output):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
