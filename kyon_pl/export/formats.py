# mypy: allow-untyped-calls
"""The formats that a merged model is written in, and the comparison with live LoRA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import GenerationConfig, GlmConfig, GlmForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

from kyon_pl.chatglm2.attention import rotary_angles
from kyon_pl.chatglm2.configuration import ChatGLM2Config
from kyon_pl.chatglm2.files import read_json_object
from kyon_pl.chatglm2.glm import glm_config, save_glm_tokenizer, tensor_to_glm
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.tokenization import read_tokenizer
from kyon_pl.errors import CheckpointError
from kyon_pl.export.layerwise import (
    CHATGLM_PARTS,
    GLM_PARTS,
    Parts,
    apply,
    difference,
    empty_model,
    loaded,
    mapped_weights,
    probe_ids,
)

FormatName = Literal["chatglm", "glm"]
Angles = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Format:
    """One way to write a ChatGLM2.

    Attributes:
        model_class: what its users load it with.
        config_class: what `config.json` is.
        parts: what the model calls its parts.
        config: its configuration for a ChatGLM2's.
        tensors: its name or names for a weight of ChatGLM2, and the tensors.
        angles: cosine and sine at positions (1, T) as its own code computes them, float32.
        save_tokenizer: from the base's folder to another.
    """

    model_class: type[PreTrainedModel]
    config_class: type[PreTrainedConfig]
    parts: Parts
    config: Callable[[ChatGLM2Config], PreTrainedConfig]
    tensors: Callable[[str, Tensor, ChatGLM2Config], Mapping[str, Tensor]]
    angles: Callable[[PreTrainedConfig, Tensor], Angles]
    save_tokenizer: Callable[[Path, Path], None]


def chatglm_angles(config: PreTrainedConfig, position_ids: Tensor) -> Angles:
    """As `ChatGLM2Model` has them."""
    return rotary_angles(position_ids, channels=config.kv_channels // 2, dtype=torch.float32)


def glm_angles(config: PreTrainedConfig, position_ids: Tensor) -> Angles:
    """As `GlmModel` has them."""
    assert isinstance(config, GlmConfig)
    angles: Angles = GlmRotaryEmbedding(config)(torch.zeros(()), position_ids)
    return angles


def copy_tokenizer(base: Path, folder: Path) -> None:
    """The published files as they are, without the key that names code to run."""
    read_tokenizer(base)  # refuses what is none
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
        config_class=ChatGLM2Config,
        parts=CHATGLM_PARTS,
        config=lambda config: config,
        tensors=lambda name, tensor, config: {name: tensor},
        angles=chatglm_angles,
        save_tokenizer=copy_tokenizer,
    ),
    "glm": Format(
        model_class=GlmForCausalLM,
        config_class=GlmConfig,
        parts=GLM_PARTS,
        config=glm_config,
        tensors=tensor_to_glm,
        angles=glm_angles,
        save_tokenizer=save_glm_tokenizer,
    ),
}


def save_configs(base: Path, config: ChatGLM2Config, folder: Path, form: Format, dtype: torch.dtype) -> None:
    """Write `config.json` and `generation_config.json`; the latter is the base's if it has one."""
    has_one = (base / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(base) if has_one else GenerationConfig.from_model_config(config)
    generation.save_pretrained(folder)
    written = form.config(config)
    written.dtype = dtype
    written.save_pretrained(folder)


# What rounding the weights may change in what any part of the model gives, relative to it. On a random 6B it is 2e-3 in
# float16 and 3e-2 in bfloat16 after the last layer.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def verify(folder: Path, form: Format, dtype: torch.dtype, live_outputs: Mapping[str, Tensor]) -> float:
    """Compare what was written with what it was written from: names, shapes, dtypes, and the outputs of every part.

    The merged model computes in float32 too, through its users' own classes, part by part, on the same rows.

    Args:
        folder: of the merged model.
        form: what it is written as.
        dtype: of all its weights.
        live_outputs: what each part of the live model gave, in their order.

    Returns:
        The relative difference of the logits.

    Raises:
        CheckpointError: it names the first thing that differs.
    """
    weights = mapped_weights(folder)
    model = empty_model(form.model_class, form.config_class.from_pretrained(folder))
    _check_shapes(folder, model, weights, dtype)
    hidden = probe_ids(model.config.vocab_size)
    angles = form.angles(model.config, torch.arange(hidden.shape[1])[None])
    parts = list(zip(form.parts.names(model.config), live_outputs.values(), strict=True))
    for part, wanted in tqdm(parts, "verifying", unit="part", disable=None):
        with loaded(model, part, weights) as module:
            hidden = apply(module, hidden, angles)
        if not difference(hidden, wanted) <= TOLERANCES[dtype]:  # NaN is not
            found = f"merged and live differ by {difference(hidden, wanted):.1e}, more than {TOLERANCES[dtype]:.0e}"
            fix = "Use --dtype float32, which rounds nothing; if it is refused too, the adapter is not one to merge"
            raise CheckpointError(f"{folder.name}: {part}", found, fix)
    return difference(hidden, wanted)


def _check_shapes(folder: Path, model: PreTrainedModel, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    wanted = {name: (tuple(tensor.shape), dtype) for name, tensor in model.named_parameters()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    if different := {name for name, _ in wanted.items() ^ found.items()}:
        name = min(different)
        said = f"{found.get(name, 'nothing')} on the disk, {wanted.get(name, 'nothing')} in the model"
        raise CheckpointError(f"{folder.name}: {name}", said, "Merge again; if it is no better, check the disk")
