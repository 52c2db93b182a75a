"""Adapters with random weights on the demo's base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.checkpoint import load_base
from kyon_pl.demo import BASE
from kyon_pl.lora import attach_lora, trainable_names, write_adapter

FOUR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
KINDS: dict[str, dict[str, Any]] = {
    "fused": {"r": 16, "lora_alpha": 32, "target_modules": ["query_key_value"]},
    "rsLoRA": {"r": 4, "target_modules": FOUR, "use_rslora": True, "rank_pattern": {"dense": 6}},
    "DoRA and head": {"r": 4, "target_modules": [*FOUR, "output_layer"], "use_dora": True},
}


def base(dtype: torch.dtype = torch.float32) -> ChatGLM2ForCausalLM:
    return load_base(BASE, dtype=dtype, device=torch.device("cpu"), attn_implementation="sdpa")


def live_model(kind: str, dtype: torch.dtype = torch.float32) -> PeftModel:
    """The demo's base with random LoRA weights, large enough to change greedy replies."""
    model = attach_lora(base(dtype), LoraConfig(**KINDS[kind]), "demo").eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_A." in name or ".lora_B." in name:
            parameter.data.normal_(std=0.08, generator=generator)
        elif "magnitude" in name:
            parameter.data.mul_(1.1)
    return model


def written_adapter(kind: str, folder: Path) -> Path:
    model = live_model(kind)
    trained = trainable_names(model)
    write_adapter(model, {name: value for name, value in model.state_dict().items() if name in trained}, folder)
    return folder
