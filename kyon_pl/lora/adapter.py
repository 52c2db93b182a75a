"""The adapter: LoRA attached to a base, and the folder that holds it on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from kyon_pl.errors import CheckpointError, SettingError


def reference_lora() -> LoraConfig:
    """The reference run's LoRA: r=16, alpha=32, dropout 0.05 on the fused query/key/value projections."""
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=["query_key_value"])


def attach_lora(base: PreTrainedModel, config: LoraConfig, base_name: str) -> PeftModel:
    """Wrap a base in LoRA: every base weight is frozen in its dtype, every adapter weight is float32.

    Args:
        base: the frozen model, in the compute precision.
        config: PEFT's own settings. An unset task type becomes causal language modelling.
        base_name: what an adapter made here names as its base (a Hub id or a folder).

    Raises:
        SettingError: LoRA settings that train base weights (`bias`, `modules_to_save`) or that fit no layer of the
            model.
    """
    if config.bias != "none" or config.modules_to_save:
        raise SettingError(
            where="model.lora",
            found=f"bias={config.bias!r}, modules_to_save={config.modules_to_save!r}: that would train base weights",
            fix="Leave bias at 'none' and modules_to_save unset; target_modules may name more layers instead",
        )
    config.task_type = TaskType.CAUSAL_LM
    try:
        model = get_peft_model(base, config)
    except ValueError as error:
        raise SettingError(where="model.lora", found=str(error), fix="Correct the LoRA settings") from error
    config.base_model_name_or_path = base_name
    return model


def load_adapter(base: PreTrainedModel, folder: Path, base_name: str) -> PeftModel:
    """Wrap a base in an adapter that exists, to train it further.

    Args:
        base: the frozen model, in the compute precision.
        folder: a PEFT folder; its own `adapter_config.json` decides rank, targets and dropout.
        base_name: what an adapter made here names as its base.

    Raises:
        CheckpointError: the adapter was made for another model, or its files do not fit together.
    """
    try:
        model = PeftModel.from_pretrained(base, folder, is_trainable=True)
    except (ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            where=f"adapter {folder}",
            found=str(error).splitlines()[0],
            fix="Use an adapter that was made for this base",
        ) from error
    model.peft_config["default"].base_model_name_or_path = base_name
    return model


def trainable_names(model: torch.nn.Module) -> set[str]:
    """The names of the parameters that are trained."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def write_adapter(model: PeftModel, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write a PEFT folder (`adapter_config.json`, `adapter_model.safetensors`) that plain PEFT loads.

    Args:
        model: the wrapped model, for its settings.
        state: the trained tensors under the model's parameter names.
        folder: where to.
    """
    # 'auto' would ask the Hub for the base's vocabulary; the embedding is never trained here
    model.save_pretrained(str(folder), state_dict=dict(state), save_embedding_layers=False)
