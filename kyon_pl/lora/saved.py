"""Saved PEFT adapters: which LoRA settings are supported, and reading and checking the files."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from kyon_pl.chatglm2.files import DTYPES, UNREADABLE, why_unreadable
from kyon_pl.errors import CheckpointError, MissingFileError, SettingError
from kyon_pl.files import entry, explained, read_json_object

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # in PEFT's order

_SUPPORTED = frozenset(
    {
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
        # no effect on the computation here
        *("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
        *("inference_mode", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"),
        *("ensure_weight_tying", "loftq_config"),  # PEFT clears loftq_config unless it initializes with it
    }
)
_SUPPORTED_INITIALIZATIONS = (True, "gaussian", "orthogonal")

_NEEDS_DATA = "its initialization needs the base's activations on data, which kyon_pl does not compute"
_CHANGES_BASE = "it changes the base's weights, so that the adapter would not fit the published ones"
_REASONS = {
    "alora_invocation_tokens": "it is active after certain tokens only, and cannot be merged",
    "arrow_config": "it mixes other adapters, which are not there",
    "bias": "it would train weights of the base",
    "corda_config": _NEEDS_DATA,
    "eva_config": _NEEDS_DATA,
    "kasa_config": _CHANGES_BASE,
    "layer_replication": "it makes another model out of the base",
    "lora_bias": "most layers of ChatGLM2 have no bias that it could be merged into",
    "lora_ga_config": _NEEDS_DATA,
    "megatron_config": "the base is not a Megatron model",
    "modules_to_save": "it would train weights of the base",
    "monteclora_config": "its outputs are sampled at random",
    "target_parameters": "it is for weights outside of layers, and ChatGLM2 has none to adapt",
    "trainable_token_indices": "it would train weights of the base's embedding",
    "use_bdlora": "it is for serving over several devices, and cannot be merged into fused layers",
    "use_qalora": "it has no effect unless the base is quantized by GPTQ",
    "velora_config": "its gradients are approximations",
}
_INITIALIZATION_REASONS = {
    "False": "A and B would be random, so that training would not start from the base",
    "corda": _NEEDS_DATA,
    "eva": _NEEDS_DATA,
    "lora_ga": _NEEDS_DATA,
    "loftq": _CHANGES_BASE,
    "mica": "it does not train B, and a checkpoint holds trained weights only",
    "olora": _CHANGES_BASE,
    "pissa": _CHANGES_BASE,
}

_REQUIRED_KEYS = ("peft_type", "r", "lora_alpha")
# the types of settings that PEFT computes with; it checks none of them
_KINDS: dict[str, type] = {
    "r": int,
    "lora_alpha": float,
    "lora_dropout": float,
    "rank_pattern": dict,
    "alpha_pattern": dict,
    "use_rslora": bool,
    "use_dora": bool,
    "fan_in_fan_out": bool,
    "base_model_name_or_path": str,
}
_OLD_KEYS = frozenset({"merge_weights"})  # PEFT 0.2 to 0.4: whether eval() merges, which changes no result
_OTHER_ADAPTER = "Use an adapter that was made for this base."


def unsupported_setting(config: LoraConfig) -> tuple[str, str] | None:
    """Find the first unsupported setting of a configuration.

    Returns:
        Its key, and its value with the reason; None if all settings are supported.
    """
    defaults = type(config)()
    for key in (field.name for field in fields(config)):
        value = getattr(config, key)
        if key not in _SUPPORTED and value != getattr(defaults, key):
            return key, f"{value!r}: {_REASONS.get(key, 'a setting of PEFT that kyon_pl has not been tested with')}"
    start = config.init_lora_weights
    if start not in _SUPPORTED_INITIALIZATIONS:
        reason = _INITIALIZATION_REASONS.get(str(start).partition("_niter_")[0], "kyon_pl has not been tested with it")
        return "init_lora_weights", f"{start!r}: {reason}"
    return None


def check_supported(config: LoraConfig) -> None:
    """Refuse settings that change or train the base, need data, cannot be merged, or are untested.

    Raises:
        SettingError: a setting is not supported; the error names the key.
    """
    if unsupported := unsupported_setting(config):
        fix = "Remove it; use_rslora, use_dora, rank_pattern and init_lora_weights: gaussian are supported"
        raise SettingError(f"model.lora.{unsupported[0]}", unsupported[1], fix)


def check_targets(model: PeftModel) -> None:
    """Refuse an adapter on the embedding, where PEFT initializes A with zeros and B at random.

    Raises:
        SettingError: there is one.
    """
    names = [name for name, _ in model.named_parameters() if ".lora_embedding_" in name]
    if names:
        found = f"it names the embedding ({names[0].partition('.lora_')[0].removeprefix('base_model.model.')})"
        raise SettingError("model.lora.target_modules", found, "Name linear layers, or all-linear for all of them")


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Read configuration and weights of a PEFT folder, without a model.

    Args:
        folder: with `adapter_config.json`, and the weights as safetensors or as a pickle of tensors.

    Returns:
        The configuration, and the tensors under the names of current PEFT versions.

    Raises:
        MissingFileError: the folder holds no adapter.
        CheckpointError: the configuration or the weights cannot be read, are not supported, or are invalid.
    """
    return read_config(folder / CONFIG_FILE), read_weights(folder)


def read_config(file: Path) -> LoraConfig:
    """Read `adapter_config.json` of any version of PEFT.

    A key that the installed PEFT does not know is dropped if its value is false or empty.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: it cannot be read, has an unsupported or unknown setting, or lacks a required key.
    """
    if not file.is_file():
        raise MissingFileError(str(file), "there is no such file", "Give the folder of a PEFT adapter.")
    content = read_json_object(file)
    if (kind := content.get("peft_type")) != "LORA":
        fix = "Use an adapter that was made by kyon-pl fit, or by PEFT with a LoraConfig."
        raise CheckpointError(f"{file}: peft_type", f"{kind!r}, and only 'LORA' is supported", fix)
    for key in _REQUIRED_KEYS:
        if key not in content:
            raise CheckpointError(f"{file}: {key}", "it is missing", "Copy this file again, or use another adapter.")
    _check_values(file, content)
    known = {field.name for field in fields(LoraConfig)}
    for key in sorted(content.keys() - known - _OLD_KEYS):
        if content[key]:
            version = content.get("peft_version", "another version")
            found = f"{content[key]!r}: the installed PEFT has no such setting (the file is by {version})"
            fix = "Upgrade PEFT if the file is newer, or remove the key if it has no effect."
            raise CheckpointError(f"{file}: {key}", found, fix)
    with explained("PEFT", file, _OTHER_ADAPTER):
        config = LoraConfig(**{key: value for key, value in content.items() if key in known})
    if config.init_lora_weights in (False, "eva"):  # both leave the base unchanged, and the weights are read anyway
        config.init_lora_weights, config.eva_config = True, None
    if unsupported := unsupported_setting(config):
        raise CheckpointError(f"{file}: {unsupported[0]}", unsupported[1], "Use an adapter of another kind.")
    config.inference_mode = False
    return config


def _check_values(file: Path, content: dict[str, Any]) -> None:
    """Check types and ranges of the numbers in an `adapter_config.json`."""
    for key, kind in _KINDS.items():
        if key in _REQUIRED_KEYS or content.get(key) is not None:
            entry(content, key, kind, file, _OTHER_ADAPTER)
    patterns = {name: content.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    for name, kind in (("rank_pattern", int), ("alpha_pattern", float)):
        for key in patterns[name]:
            entry(patterns[name], key, kind, f"{file}: {name}", _OTHER_ADAPTER)
    ranks = {"r": content["r"]} | {f"rank_pattern: {key}": rank for key, rank in patterns["rank_pattern"].items()}
    for name, rank in ranks.items():
        if rank < 1:
            raise CheckpointError(f"{file}: {name}", f"{rank} is impossible", _OTHER_ADAPTER)
    alphas = {"lora_alpha": content["lora_alpha"]}
    alphas |= {f"alpha_pattern: {key}": alpha for key, alpha in patterns["alpha_pattern"].items()}
    for name, alpha in alphas.items():
        if not math.isfinite(alpha):
            raise CheckpointError(f"{file}: {name}", f"{alpha} is impossible", _OTHER_ADAPTER)
    dropout = content.get("lora_dropout") or 0
    if not 0 <= dropout < 1:
        raise CheckpointError(f"{file}: lora_dropout", f"{dropout} is impossible", _OTHER_ADAPTER)


def check_ranks(folder: Path, config: LoraConfig, state: dict[str, torch.Tensor]) -> None:
    """Compare the ranks in an adapter's settings with its weights, before PEFT allocates memory for them.

    Raises:
        CheckpointError: they differ.
    """
    ranks = config.rank_pattern or {}
    for name, tensor in state.items():
        module, _, kind = name.removeprefix("base_model.model.").rpartition(".lora_A.")
        if kind != "weight" or tensor.dim() == 0:
            continue
        with explained("PEFT", folder / CONFIG_FILE, _OTHER_ADAPTER):  # the patterns are regular expressions
            rank = ranks.get(get_pattern_key(list(ranks), module), config.r)
        if len(tensor) != rank:
            found = f"{tuple(tensor.shape)} instead of {(rank, *tensor.shape[1:])}: its rank is {len(tensor)}"
            found += f", and {CONFIG_FILE} says {rank}"
            raise CheckpointError(f"adapter {folder}: {name}", found, _OTHER_ADAPTER)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a PEFT folder under current names, without the prefixes of torch.compile.

    Raises:
        MissingFileError: there is no weight file.
        CheckpointError: it cannot be read, holds something other than finite floating-point tensors, or has a layer
            that cannot be trained because A and B are zero.
    """
    file = weights_file(folder)
    try:
        content = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except UNREADABLE as error:
        fix = "Copy this file again; it may be cut short, or hold something other than tensors."
        raise CheckpointError(str(file), f"weights that cannot be read ({why_unreadable(error)})", fix) from error
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            str(file), "it holds no weights", "Use another adapter: this one was not saved correctly."
        )
    state: dict[str, torch.Tensor] = {}
    for name, tensor in content.items():
        if not (isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.dtype in DTYPES):
            raise CheckpointError(f"{file}: {name}", "it is not a floating-point tensor", _OTHER_ADAPTER)
        if tensor.layout != torch.strided or tensor.device.type != "cpu":  # sparse, or on meta, from a pickle
            raise CheckpointError(f"{file}: {name}", "it is not a tensor with values in order", _OTHER_ADAPTER)
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file}: {name}", "it holds numbers that are not finite", "Use an older adapter.")
        plain = str(name).replace("_orig_mod.", "").replace(".default.", ".")
        if plain in state:
            raise CheckpointError(f"{file}: {plain}", "there are two of this name", "Use another adapter.")
        state[plain] = tensor
    _check_layers_are_trainable(file, state)
    return state


def weights_file(folder: Path) -> Path:
    """The file with an adapter's weights.

    Raises:
        MissingFileError: there is none.
    """
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        found = f"neither {WEIGHT_FILES[0]} nor {WEIGHT_FILES[1]}"
        raise MissingFileError(str(folder), found, "Give the folder of a PEFT adapter.")
    return file


def check_fit(folder: Path, model: PeftModel, state: dict[str, torch.Tensor], name: str = "default") -> None:
    """Compare names and shapes of saved tensors with those of an adapter attached to a base.

    Args:
        folder: of the adapter, for the error.
        model: the base, wrapped in an adapter with the saved configuration.
        state: from `read_weights`.
        name: of the adapter in the model.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; the error names it.
    """
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if different := sorted(state.keys() ^ expected.keys()):
        first = different[0]
        found = "it is missing" if first in expected else "there is no such layer in this base"
        more = f", and {len(different) - 1} more tensors do not fit" if len(different) > 1 else ""
        raise CheckpointError(f"adapter {folder}: {first}", found + more, _OTHER_ADAPTER)
    for key, tensor in state.items():
        if (found_shape := tuple(tensor.shape)) != (shape := tuple(expected[key].shape)):
            found = f"{found_shape} instead of {shape}"
            raise CheckpointError(f"adapter {folder}: {key}", found, _OTHER_ADAPTER)


def _check_layers_are_trainable(file: Path, state: dict[str, torch.Tensor]) -> None:
    """Refuse a layer whose A and B are both zero: it has no effect, and its gradients are zero too."""
    for name, tensor in state.items():
        b_name = name.replace(".lora_A.", ".lora_B.")
        if b_name != name and b_name in state and not tensor.any() and not state[b_name].any():
            found = "A and B of this layer are all zero: it has no effect and cannot be trained"
            raise CheckpointError(f"{file}: {name}", found, "Use another adapter: this one was not saved correctly.")
