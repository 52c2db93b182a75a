"""A saved PEFT adapter: which kinds of LoRA are supported, and how its files are read."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from kyon_pl.chatglm2.files import UNREADABLE, read_json_object, why_unreadable
from kyon_pl.errors import CheckpointError, MissingFileError, SettingError

_KEPT = frozenset(
    {
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
        # without a say in what is computed here
        *("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
        *("inference_mode", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"),
        *("ensure_weight_tying", "loftq_config"),  # PEFT empties the last one itself, unless it initializes with it
    }
)
_KEPT_STARTS = (True, "gaussian", "orthogonal")

_NEEDS_DATA = "it starts from what the base computes on data, which is not done here"
_CHANGES_BASE = "it changes the base's weights, so that the adapter would not fit the published ones"
_WHY_NOT = {
    "alora_invocation_tokens": "it works behind certain tokens only, and cannot be merged",
    "arrow_config": "it mixes other adapters, which are not there",
    "bias": "it would train weights of the base",
    "corda_config": _NEEDS_DATA,
    "eva_config": _NEEDS_DATA,
    "kasa_config": _CHANGES_BASE,
    "layer_replication": "it makes another model out of the base",
    "lora_bias": "most layers of ChatGLM2 have no bias that it could be merged into",
    "lora_ga_config": _NEEDS_DATA,
    "megatron_config": "the base is no model of Megatron's",
    "modules_to_save": "it would train weights of the base",
    "monteclora_config": "what it computes is drawn at random",
    "target_parameters": "it is for weights outside of layers, and ChatGLM2 has none to adapt",
    "trainable_token_indices": "it would train weights of the base's embedding",
    "use_bdlora": "it is for serving over several devices, and does not merge into fused layers as a whole",
    "use_qalora": "it does nothing unless the base is quantized by GPTQ",
    "velora_config": "its gradients are approximations",
}
_WHY_NOT_START = {
    "False": "A and B would be random, so that training would not start from the base",
    "corda": _NEEDS_DATA,
    "eva": _NEEDS_DATA,
    "lora_ga": _NEEDS_DATA,
    "loftq": _CHANGES_BASE,
    "mica": "it does not train B, and a checkpoint holds what is trained",
    "olora": _CHANGES_BASE,
    "pissa": _CHANGES_BASE,
}


def refused_setting(config: LoraConfig) -> tuple[str, str] | None:
    """The first of PEFT's settings that breaks the contract.

    Returns:
        its key, and what was found and why it is refused; None if there is none.
    """
    usual = type(config)()
    for key in (field.name for field in fields(config)):
        value = getattr(config, key)
        if key not in _KEPT and value != getattr(usual, key):
            return key, f"{value!r}: {_WHY_NOT.get(key, 'a setting of PEFT that kyon_pl has not been tested with')}"
    start = config.init_lora_weights
    if start not in _KEPT_STARTS:
        why = _WHY_NOT_START.get(str(start).partition("_niter_")[0], "kyon_pl has not been tested with it")
        return "init_lora_weights", f"{start!r}: {why}"
    return None


def check_family(config: LoraConfig) -> None:
    """Refuse a kind of LoRA that changes the base, needs data, or is none that merges.

    Raises:
        SettingError: it names the key.
    """
    if refused := refused_setting(config):
        fix = "Leave it out; use_rslora, use_dora, rank_pattern and init_lora_weights: gaussian are among what works"
        raise SettingError(f"model.lora.{refused[0]}", refused[1], fix)


def check_targets(model: PeftModel) -> None:
    """Refuse an adapter on the embedding, which starts the other way round: its B is random, and its A is zero.

    Raises:
        SettingError: there is one.
    """
    names = [name for name, _ in model.named_parameters() if ".lora_embedding_" in name]
    if names:
        found = f"it names the embedding ({names[0].partition('.lora_')[0].removeprefix('base_model.model.')})"
        raise SettingError(
            "model.lora.target_modules", found, "Name linear layers, or write all-linear for all of them"
        )


SETTINGS = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # PEFT too prefers the first

# keys of PEFT 0.2 to 0.4: whether to merge when evaluating, which changes no number
_OLD_KEYS = frozenset({"merge_weights"})
_NEEDED = ("peft_type", "r", "lora_alpha")
_ANOTHER = "Use an adapter that was made for this base."


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Settings and weights of a PEFT folder, without a model.

    Args:
        folder: holds `adapter_config.json`, and the weights as safetensors or as a pickle of tensors.

    Returns:
        the settings, and the tensors under the names that PEFT writes today.

    Raises:
        MissingFileError: the folder holds no adapter.
        CheckpointError: settings or weights cannot be read, are of a kind that is refused (see `family`), or cannot be
            those of an adapter that was ever trained.
    """
    return read_settings(folder / SETTINGS), read_weights(folder)


def read_settings(file: Path) -> LoraConfig:
    """PEFT's settings from `adapter_config.json`, those of old versions too.

    A key that this PEFT does not know, from an older or a newer one, is dropped where it asks for nothing.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: it cannot be read, asks for something that is refused or not known, or lacks a number.
    """
    if not file.is_file():
        raise MissingFileError(str(file), "there is no such file", "Give the folder of a PEFT adapter.")
    content = read_json_object(file)
    if (kind := content.get("peft_type")) != "LORA":
        fix = "Use an adapter that was made by kyon-pl fit, or by PEFT with a LoraConfig."
        raise CheckpointError(f"{file}: peft_type", f"{kind!r}, and only 'LORA' can be trained further", fix)
    for key in _NEEDED:
        if key not in content:
            raise CheckpointError(f"{file}: {key}", "it is missing", "Copy this file again, or use another adapter.")
    known = {field.name for field in fields(LoraConfig)}
    for key in sorted(content.keys() - known - _OLD_KEYS):
        if content[key]:
            version = content.get("peft_version", "another version")
            fix = "Upgrade PEFT if it is newer; or remove the key if you know that it changes nothing."
            found = f"{content[key]!r}: PEFT here has no such setting (the file is by {version})"
            raise CheckpointError(f"{file}: {key}", found, fix)
    try:
        config = LoraConfig(**{key: value for key, value in content.items() if key in known})
    except (ValueError, TypeError, ImportError) as error:
        raise CheckpointError(str(file), f"PEFT refuses it: {str(error).splitlines()[0]}", _ANOTHER) from error
    if config.init_lora_weights in (False, "eva"):  # how it began does not matter any more, and the base is as it was
        config.init_lora_weights, config.eva_config = True, None
    if refused := refused_setting(config):
        raise CheckpointError(f"{file}: {refused[0]}", refused[1], "Use an adapter of another kind.")
    config.inference_mode = False
    return config


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a PEFT folder under the names that PEFT writes today; what torch.compile put into them is dropped.

    Raises:
        MissingFileError: there is no file of weights.
        CheckpointError: it cannot be read, holds something else than finite tensors, or one that can never change.
    """
    file = weights_file(folder)
    try:
        held = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except UNREADABLE as error:
        fix = "Copy this file again; it may be cut short, or hold something else than tensors."
        raise CheckpointError(str(file), f"weights that cannot be read ({why_unreadable(error)})", fix) from error
    if not isinstance(held, dict) or not held:
        raise CheckpointError(str(file), "it holds no weights at all", "Use another adapter: its save went wrong.")
    state: dict[str, torch.Tensor] = {}
    for name, tensor in held.items():
        if not (isinstance(tensor, torch.Tensor) and tensor.is_floating_point()):
            raise CheckpointError(f"{file}: {name}", "it is no tensor of floating-point numbers", _ANOTHER)
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file}: {name}", "it holds numbers that are not finite", "Use an older adapter.")
        plain = str(name).replace("_orig_mod.", "").replace(".default.", ".")
        if plain in state:
            raise CheckpointError(f"{file}: {plain}", "there are two of this name", "Use another adapter.")
        state[plain] = tensor
    _refuse_dead_layers(file, state)
    return state


def weights_file(folder: Path) -> Path:
    """The file that holds an adapter's weights.

    Raises:
        MissingFileError: there is none.
    """
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        found = f"neither {WEIGHTS[0]} nor {WEIGHTS[1]}"
        raise MissingFileError(str(folder), found, "Give the folder of a PEFT adapter.")
    return file


def check_fit(folder: Path, model: PeftModel, state: dict[str, torch.Tensor], name: str = "default") -> None:
    """Compare the tensors of a folder with the adapter that its settings make on a base, name by name.

    Args:
        folder: for the error.
        model: the base, wrapped in that adapter.
        state: from `read_weights`.
        name: of the adapter among the model's.

    Raises:
        CheckpointError: a tensor that is missing, alien or of another shape; it is named, and so is a wrong rank.
    """
    wanted = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if different := sorted(state.keys() ^ wanted.keys()):
        first = different[0]
        found = "it is missing" if first in wanted else "there is no such layer in this base"
        more = f", nor do {len(different) - 1} more fit" if len(different) > 1 else ""
        raise CheckpointError(f"adapter {folder}: {first}", found + more, _ANOTHER)
    for key, tensor in state.items():
        if (found_shape := tuple(tensor.shape)) != (shape := tuple(wanted[key].shape)):
            rank = {"A": 0, "B": 1}.get(key.rpartition(".lora_")[2].removesuffix(".weight"))
            found = f"{found_shape} instead of {shape}"
            if rank is not None and found_shape[1 - rank] == shape[1 - rank]:
                found += f": it is of rank {found_shape[rank]}, and {SETTINGS} says {shape[rank]}"
            raise CheckpointError(f"adapter {folder}: {key}", found, _ANOTHER)


def _refuse_dead_layers(file: Path, state: dict[str, torch.Tensor]) -> None:
    """A layer whose A and B are both zero changes nothing, and gets no gradient either."""
    for name, tensor in state.items():
        partner = name.replace(".lora_A.", ".lora_B.")
        if partner != name and partner in state and not tensor.any() and not state[partner].any():
            found = "it is all zero, and so is its B: this layer changes nothing and can learn nothing"
            raise CheckpointError(f"{file}: {name}", found, "Use another adapter: its save went wrong.")
