# mypy: allow-untyped-calls
"""What a merged model can be written as: the published layout, or transformers' own GLM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, GlmConfig, GlmForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

from kyon_pl.chatglm2.attention import rotary_angles
from kyon_pl.chatglm2.configuration import ChatGLM2Config
from kyon_pl.chatglm2.glm import glm_config, tensor_to_glm
from kyon_pl.chatglm2.glm_tokenizer import save_glm_tokenizer
from kyon_pl.chatglm2.json_object import read_json_object
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.tokenization import read_tokenizer
from kyon_pl.lora.layerwise import CHATGLM_PARTS, GLM_PARTS, Parts

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
