# mypy: allow-untyped-calls
"""The settings of a module in its checkpoints, from which `load_from_checkpoint` makes the module again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from peft import LoraConfig, PeftModel

from kyon_pl.demo import name_to_record
from kyon_pl.errors import CheckpointError, SettingError
from kyon_pl.files import entry
from kyon_pl.lora import frozen_dtype
from kyon_pl.training.base import FrozenBase

SETTINGS = "module_settings"
"""Key in a checkpoint. Not Lightning's `hyper_parameters`, with which LightningCLI replaces the command line's."""

_NOT_RECORDED = ("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version")
_NESTED = ("runtime_config", "loftq_config")  # of kinds of LoRA that are not supported
_OF_MODULE = ("base", "revision", "random_config", "adapter", "quantization", "attention")  # in a YAML of fit
_FIX = "Use a checkpoint of this package, or load its adapter with PeftModel.from_pretrained"


def settings_to_record(base: FrozenBase, model: PeftModel) -> dict[str, Any]:
    """Plain values from which a module with this base and this adapter can be made.

    Args:
        base: of the module.
        model: with the adapter.
    """
    default, lora = LoraConfig().to_dict(), model.peft_config["default"].to_dict()
    changed = {key: value for key, value in lora.items() if key not in _NOT_RECORDED and value != default.get(key)}
    return {
        "base": name_to_record(base.name),
        "revision": base.revision,
        "random_config": base.random_config,
        "lora": {key: sorted(value) if isinstance(value, set) else value for key, value in changed.items()},
        "shard_base": base.sharded,
        "quantization": base.quantization,
        "checkpointing": base.checkpointing,
        "compile": base.compiled,
        "attention": base.attention,
    }


def read_settings(checkpoint: Mapping[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """The arguments of the module and the precision of the run that saved a checkpoint.

    Args:
        checkpoint: of this version, or of a command line without this record, which has the whole configuration.
        where: names the checkpoint in errors.

    Raises:
        CheckpointError: there are no settings, or they are not valid.
    """
    if SETTINGS in checkpoint:
        settings = dict(entry(checkpoint, SETTINGS, dict, where, _FIX))
        precision = str(settings.pop("precision", None))
    elif "config" in checkpoint:
        config = yaml.safe_load(entry(checkpoint, "config", str, where, _FIX))
        settings = {key: config["model"][key] for key in _OF_MODULE}
        lora = config["model"]["lora"] or {}
        lora = lora.get("init_args", lora)
        settings["lora"] = {key: value for key, value in lora.items() if value is not None and key not in _NESTED}
        precision = str(config["trainer"]["precision"] or "32-true")
    else:
        raise CheckpointError(where, "it has no settings to make the module from", _FIX)
    return settings | {"lora": LoraConfig(**settings["lora"])}, precision


def check_precision_loaded(loaded: str, precision: str) -> None:
    """Check that a base that is loaded already has the dtype of the Trainer's precision.

    Args:
        loaded: precision that it was loaded for.
        precision: `trainer.precision`.

    Raises:
        SettingError: the dtypes differ.
    """
    if frozen_dtype(loaded) != frozen_dtype(precision):
        found = f"{precision}, but the module has loaded its base for {loaded}"
        raise SettingError("trainer.precision", found, "Use that precision, or make a new module for this Trainer")
