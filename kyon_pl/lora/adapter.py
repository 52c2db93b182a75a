"""The adapter: LoRA attached to a base, and the folder that holds it on disk."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from transformers import PreTrainedModel

from kyon_pl.errors import CheckpointError, SettingError
from kyon_pl.lora.saved import check_family, check_fit, check_targets, read_adapter

log = logging.getLogger(__name__)


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
        SettingError: LoRA settings that do not leave the base as it is or that need data (see `family`), or that fit
            no layer of the model.
    """
    check_family(config)
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
    """Refuse numbers with which nothing, or nothing sensible, would be learnt; PEFT takes most of them.

    Raises:
        SettingError: it names the key.
    """
    for key, value, possible, fix in (
        ("r", config.r, config.r >= 1, "Set 1 or more; 16 is usual."),
        ("lora_alpha", config.lora_alpha, 0 < config.lora_alpha < math.inf, "Set more than 0; twice r is usual."),
        ("lora_dropout", config.lora_dropout, 0 <= config.lora_dropout < 1, "Set 0, or up to 1."),
    ):
        if not possible:
            raise SettingError(f"model.lora.{key}", f"{value} is impossible", fix)


def load_adapter(base: PreTrainedModel, folder: Path, base_name: str) -> PeftModel:
    """Wrap a base in an adapter that exists, to train it further.

    Args:
        base: the frozen model, in the compute precision.
        folder: a PEFT folder of any version of PEFT; its own `adapter_config.json` decides rank, targets and dropout.
        base_name: what an adapter made here names as its base.

    Raises:
        MissingFileError: the folder holds no adapter.
        CheckpointError: the adapter was made for another model, cannot be read, is of a kind that is refused, or its
            files do not fit together.
    """
    config, state = read_adapter(folder)
    _warn_of_another_base(folder, config, base_name)
    config.base_model_name_or_path = None  # PEFT would warn that it differs from the base's own name
    config.task_type = TaskType.CAUSAL_LM
    model = _attached(folder, lambda: get_peft_model(base, config))
    check_fit(folder, model, state)
    set_peft_model_state_dict(model, state)
    config.base_model_name_or_path = base_name
    return model


def add_adapter(model: PeftModel, folder: Path, base_name: str, name: str) -> None:
    """Put one more adapter beside those of a model, for inference; the one in use stays.

    Args:
        model: from `load_adapter`.
        folder: a PEFT folder, as there.
        base_name: what the model's base is called, as there.
        name: to switch to it by, with PEFT's `set_adapter`.

    Raises:
        MissingFileError: as `load_adapter` raises it.
        CheckpointError: as `load_adapter` raises it.
    """
    config, state = read_adapter(folder)
    _warn_of_another_base(folder, config, base_name)
    config.base_model_name_or_path, config.task_type = None, TaskType.CAUSAL_LM

    def attach() -> PeftModel:
        model.add_adapter(name, config)
        return model

    check_fit(folder, _attached(folder, attach), state, name)
    set_peft_model_state_dict(model, state, adapter_name=name)


def _warn_of_another_base(folder: Path, config: LoraConfig, base_name: str) -> None:
    made_for = config.base_model_name_or_path
    if made_for and Path(made_for).name != Path(base_name).name:
        log.warning("adapter %s was made for %s, and the base here is %s", folder, made_for, base_name)


def _attached(folder: Path, attach: Callable[[], PeftModel]) -> PeftModel:
    try:
        model = attach()
        check_targets(model)
    except (ValueError, TypeError, re.error) as error:  # TypeError: a setting of another kind
        raise CheckpointError(
            where=f"adapter {folder}",
            found=str(error).splitlines()[0],
            fix="Use an adapter that was made for this base",
        ) from error
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
