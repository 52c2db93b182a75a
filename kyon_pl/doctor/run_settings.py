"""What the memory of a run depends on, read from its settings."""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import Namespace
from peft import LoraConfig

from kyon_pl.chatglm2.attention import choose_attention
from kyon_pl.data.batches.plan import PACKED
from kyon_pl.doctor.device import Target
from kyon_pl.doctor.memory import FLOAT32_BYTES, BatchShape, MemorySettings
from kyon_pl.lora import frozen_dtype, reference_lora
from kyon_pl.lora.saved import CONFIG_FILE, read_config


def memory_settings(
    settings: Namespace, target: Target, training: BatchShape, validation: BatchShape | None
) -> MemorySettings:
    """The settings that the peak of a run depends on.

    Args:
        settings: of fit, without any `auto`.
        target: the devices.
        training: the training batch that needs the most memory.
        validation: the largest validation batch; None: no validation.

    Raises:
        SettingError: the precision is not supported.
        CheckpointError: the adapter's settings cannot be read.
    """
    model, precision = settings.model, str(settings.trainer.precision or "32-true")
    device = torch.device(target.device_type)
    return MemorySettings(
        precision=precision,
        lora=lora_of(model),
        checkpointing=model.checkpointing,
        quantization=model.quantization,
        compiled=model.compile,
        attention=_attention(model.attention, device, precision, target),
        packed=settings.data.batching in PACKED,
        training=training,
        validation=None if settings.trainer.limit_val_batches == 0 else validation,
        device_type=target.device_type,
        sharded_over=target.devices if model.shard_base else 1,
    )


def lora_of(model: Namespace) -> LoraConfig:
    """The LoRA settings of the run: those of `model.adapter` if it is an adapter's folder, else `model.lora`.

    Args:
        model: the settings of the model.

    Raises:
        CheckpointError: the adapter's settings cannot be read.
    """
    if model.adapter and (Path(model.adapter) / CONFIG_FILE).is_file():
        return read_config(Path(model.adapter) / CONFIG_FILE)
    if model.lora is None:
        return reference_lora()
    lora = model.lora.get("init_args", model.lora)
    return LoraConfig(
        r=lora.r,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        use_dora=lora.get("use_dora", False),
    )


def _attention(attention: str, device: torch.device, precision: str, target: Target) -> str:
    """The attention implementation that will run; for another machine's GPU, that of its generation."""
    dtype = frozen_dtype(precision)
    if target.is_local:
        return choose_attention(attention, device, dtype)[0]
    if attention == "auto":
        has_flash = target.card is None or target.card.capability >= (8, 0)
        return "varlen" if has_flash and dtype.itemsize < FLOAT32_BYTES else "sdpa"
    return attention
