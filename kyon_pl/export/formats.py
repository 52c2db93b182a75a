# mypy: allow-untyped-calls
"""The formats of merged models, and their verification against base and adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import AutoConfig, GenerationConfig, GlmConfig, GlmForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

from kyon_pl.chatglm2.attention import rotary_angles
from kyon_pl.chatglm2.checkpoint import read_generation_config
from kyon_pl.chatglm2.configuration import ChatGLM2Config
from kyon_pl.chatglm2.glm import glm_config, save_glm_tokenizer, tensor_to_glm
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.tokenization import read_tokenizer
from kyon_pl.errors import CheckpointError
from kyon_pl.export.layerwise import (
    CHATGLM_PARTS,
    GLM_PARTS,
    Parts,
    empty_model,
    loaded_part,
    map_weights,
    probe_ids,
    relative_difference,
    run_part,
)
from kyon_pl.files import read_json_object

FormatName = Literal["chatglm", "glm"]
Angles = tuple[Tensor, Tensor]

# Largest relative difference of any part's output after rounding the weights. For a random 6B it is 2e-3 in float16 and
# 3e-2 in bfloat16, after the last layer.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


@dataclass(frozen=True)
class Format:
    """A format that ChatGLM2 is exported to.

    Attributes:
        model_class: for loading the model.
        parts: module names.
        config: converts a configuration of ChatGLM2.
        tensors: converts a named weight of ChatGLM2 to one or more named tensors.
        angles: cosine and sine of positions (1, T), float32, as the model class computes them.
        save_tokenizer: converts the tokenizer of the base's folder, and writes it to another.
    """

    model_class: type[PreTrainedModel]
    parts: Parts
    config: Callable[[ChatGLM2Config], PreTrainedConfig]
    tensors: Callable[[str, Tensor, ChatGLM2Config], Mapping[str, Tensor]]
    angles: Callable[[PreTrainedConfig, Tensor], Angles]
    save_tokenizer: Callable[[Path, Path], None]


def chatglm_angles(config: PreTrainedConfig, position_ids: Tensor) -> Angles:
    """Rotary angles as in `ChatGLM2Model`."""
    return rotary_angles(position_ids, channels=config.kv_channels // 2, dtype=torch.float32)


def glm_angles(config: PreTrainedConfig, position_ids: Tensor) -> Angles:
    """Rotary angles as in `GlmModel`."""
    assert isinstance(config, GlmConfig)
    angles: Angles = GlmRotaryEmbedding(config)(torch.zeros(()), position_ids)
    return angles


def copy_tokenizer(base: Path, folder: Path) -> None:
    """Copy the tokenizer files, without the `auto_map` key, which names remote code."""
    read_tokenizer(base)  # for its checks
    shutil.copyfile(base / "tokenizer.model", folder / "tokenizer.model")
    config = base / "tokenizer_config.json"
    content = read_json_object(config) if config.is_file() else {}
    content = {"tokenizer_class": "ChatGLMTokenizer"} | content
    content.pop("auto_map", None)
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


FORMATS: dict[FormatName, Format] = {
    "chatglm": Format(
        model_class=ChatGLM2ForCausalLM,
        parts=CHATGLM_PARTS,
        config=lambda config: config,
        tensors=lambda name, tensor, config: {name: tensor},
        angles=chatglm_angles,
        save_tokenizer=copy_tokenizer,
    ),
    "glm": Format(
        model_class=GlmForCausalLM,
        parts=GLM_PARTS,
        config=glm_config,
        tensors=tensor_to_glm,
        angles=glm_angles,
        save_tokenizer=save_glm_tokenizer,
    ),
}


def save_configs(base: Path, config: ChatGLM2Config, folder: Path, form: Format, dtype: torch.dtype) -> None:
    """Write `config.json` and `generation_config.json`, which is the base's if there is one."""
    generation = read_generation_config(base) or GenerationConfig.from_model_config(config)
    generation.save_pretrained(folder)
    converted = form.config(config)
    converted.dtype = dtype
    converted.save_pretrained(folder)


def verify(folder: Path, form: Format, dtype: torch.dtype, live_outputs: Mapping[str, Tensor]) -> float:
    """Verify a merged model against base and adapter: names, shapes, dtypes, and the output of each part.

    The merged model also runs in float32, with the format's model class, part by part, on the same rows.

    Args:
        folder: of the merged model.
        form: its format.
        dtype: of all its weights.
        live_outputs: output of each part of the base with its adapter, in order.

    Returns:
        The relative difference of the logits.

    Raises:
        CheckpointError: something differs; the error names the first part or weight.
    """
    weights = map_weights(folder)
    model = empty_model(form.model_class, AutoConfig.from_pretrained(folder))
    _check_shapes(folder, model, weights, dtype)
    for part, difference in output_differences(model, form, weights, live_outputs):
        if not difference <= TOLERANCES[dtype]:  # also if it is NaN
            found = f"merged and live differ by {difference:.1e}, more than {TOLERANCES[dtype]:.0e}"
            fix = "Use --dtype float32, which does not round; if that fails too, use another adapter"
            raise CheckpointError(f"{folder.name}: {part}", found, fix)
    return difference


def output_differences(
    model: PreTrainedModel, form: Format, weights: Mapping[str, Tensor], live_outputs: Mapping[str, Tensor]
) -> Iterator[tuple[str, float]]:
    """Run written weights in float32, part by part, and compare with base and adapter on the probe rows.

    Args:
        model: from `empty_model`.
        form: of the model's classes and names.
        weights: by the model's names.
        live_outputs: output of each part of the base with its adapter, in order.

    Yields:
        Each part and the relative difference of its output; the last one's are the logits.
    """
    hidden = probe_ids(model.config.vocab_size)
    angles = form.angles(model.config, torch.arange(hidden.shape[1])[None])
    parts = list(zip(form.parts.names(model.config), live_outputs.values(), strict=True))
    for part, expected in tqdm(parts, "verifying", unit="part", disable=None):
        with loaded_part(model, part, weights) as module:
            hidden = run_part(module, hidden, angles)
        yield part, relative_difference(hidden, expected)


def _check_shapes(folder: Path, model: PreTrainedModel, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    expected = {name: (tuple(tensor.shape), dtype) for name, tensor in model.named_parameters()}
    written = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    if different := {name for name, _ in expected.items() ^ written.items()}:
        name = min(different)
        found = f"{written.get(name, 'nothing')} on the disk, {expected.get(name, 'nothing')} in the model"
        raise CheckpointError(f"{folder.name}: {name}", found, "Merge again; if this persists, check the disk")
