"""Attaching LoRA to a base, and loading and saving adapters as PEFT folders."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from transformers import PreTrainedModel

from kyon_pl.disk import default_mode
from kyon_pl.errors import CheckpointError, SettingError
from kyon_pl.files import explained
from kyon_pl.lora.saved import WEIGHT_FILES, check_fit, check_ranks, check_supported, check_targets, read_adapter

log = logging.getLogger(__name__)


def reference_lora() -> LoraConfig:
    """The reference run's LoRA: r=16, alpha=32, dropout 0.05 on the fused query/key/value projections."""
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=["query_key_value"])


def attach_lora(base: PreTrainedModel, config: LoraConfig, base_name: str) -> PeftModel:
    """Wrap a base in a new adapter. Base weights are frozen in their dtype; adapter weights are float32.

    Args:
        base: in its compute dtype.
        config: PEFT's configuration. The task type becomes causal language modeling.
        base_name: Hub id or folder, written to the adapter as `base_model_name_or_path`.

    Raises:
        SettingError: a setting is not supported (see `check_supported`), invalid, or matches no layer of the model.
    """
    check_supported(config)
    check_numbers(config)
    config.task_type = TaskType.CAUSAL_LM
    try:
        model = get_peft_model(base, config)
    except (ValueError, re.error) as error:  # re.error: target_modules as a pattern
        raise SettingError(where="model.lora", found=str(error), fix="Correct the LoRA settings") from error
    check_targets(model)
    config.base_model_name_or_path = base_name
    return model


def check_numbers(config: LoraConfig) -> None:
    """Check `r`, `lora_alpha` and `lora_dropout`; PEFT accepts most invalid values.

    Raises:
        SettingError: a value is invalid; the error names the key.
    """
    for key, value, valid, fix in (
        ("r", config.r, config.r >= 1, "Set 1 or more; 16 is usual."),
        ("lora_alpha", config.lora_alpha, 0 < config.lora_alpha < math.inf, "Set more than 0; twice r is usual."),
        ("lora_dropout", config.lora_dropout, 0 <= config.lora_dropout < 1, "Set 0 or more, and less than 1."),
    ):
        if not valid:
            raise SettingError(f"model.lora.{key}", f"{value} is impossible", fix)


def load_adapter(base: PreTrainedModel, folder: Path, base_name: str) -> PeftModel:
    """Wrap a base in a saved adapter, to use it or to train it further.

    Args:
        base: in its compute dtype.
        folder: written by any version of PEFT; its `adapter_config.json` gives rank, targets and dropout.
        base_name: Hub id or folder, written to the adapter when it is saved.

    Raises:
        MissingFileError: the folder holds no adapter.
        CheckpointError: the adapter does not fit the base, is not supported, cannot be read, or is inconsistent.
    """
    config, state = _read_for(base_name, folder)
    model = _attach(folder, lambda: get_peft_model(base, config))
    check_fit(folder, model, state)
    set_peft_model_state_dict(model, state)
    config.base_model_name_or_path = base_name
    return model


def add_adapter(model: PeftModel, folder: Path, base_name: str, name: str) -> None:
    """Add another saved adapter to a model, for inference; the active adapter does not change.

    Args:
        model: from `load_adapter`.
        folder: as for `load_adapter`.
        base_name: as for `load_adapter`.
        name: for PEFT's `set_adapter`.

    Raises:
        MissingFileError: as for `load_adapter`.
        CheckpointError: as for `load_adapter`.
    """
    config, state = _read_for(base_name, folder)

    def attach() -> PeftModel:
        model.add_adapter(name, config)
        return model

    check_fit(folder, _attach(folder, attach), state, name)
    set_peft_model_state_dict(model, state, adapter_name=name)


def _read_for(base_name: str, folder: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Read an adapter, and warn if it names another base."""
    config, state = read_adapter(folder)
    check_ranks(folder, config, state)
    made_for = config.base_model_name_or_path
    if made_for and Path(made_for).name != Path(base_name).name:
        log.warning("adapter %s was made for %s, and the base here is %s", folder, made_for, base_name)
    config.base_model_name_or_path = None  # PEFT would warn that it differs from the base's name
    config.task_type = TaskType.CAUSAL_LM
    return config, state


def _attach(folder: Path, attach: Callable[[], PeftModel]) -> PeftModel:
    with explained("PEFT", f"adapter {folder}", "Use an adapter that was made for this base"):
        model = attach()
    try:
        check_targets(model)
    except SettingError as error:
        raise CheckpointError(f"adapter {folder}", error.found, "Use an adapter of linear layers") from error
    return model


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trainable_names(model: torch.nn.Module) -> set[str]:
    """Names of the parameters that require a gradient."""
    return {*trained_parameters(model)}


def write_adapter(model: PeftModel, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        model: the wrapped model, for its configuration.
        state: the trained tensors, by the model's parameter names.
        folder: to write to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # with 'auto', PEFT would look up the base's vocabulary on the Hub; the embedding is never trained here
    with default_mode(folder / WEIGHT_FILES[0]):
        model.save_pretrained(str(folder), state_dict=dict(state), save_embedding_layers=False)
