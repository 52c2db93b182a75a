"""The settings of fit without Lightning, for the commands that read them and do not train; and checks of the Trainer's.

`DialogueData` types the data settings; the table of options types the others.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]
from jsonargparse.typing import register_type

from kyon_pl.cli.allowed_code import check_origins, take_allowed_code
from kyon_pl.cli.messages import explain
from kyon_pl.cli.options import Option, options_of
from kyon_pl.cli.settings import config_files
from kyon_pl.data.dialogue_data import DialogueData
from kyon_pl.errors import SettingError

log = logging.getLogger(__name__)

_TYPES: dict[str, Any] = {
    "text": str,
    "Path": str,
    "int": int,
    "number": float,
    "true/false": bool,
    "null": None,
    "mapping": dict,
}
_FIRST_FSDP = ("FSDPStrategy", "fsdp", "fsdp_cpu_offload")
_MAX_INT = 2**31 - 1
_MOST_DEVICES = 1024  # Lightning starts a process for each
_MINIMUM = {"accumulate_grad_batches": 1, "log_every_n_steps": 1, "num_nodes": 1, "max_epochs": -1, "max_steps": -1}


class Unchecked:
    """A value that the parser takes without a check: a class that is not imported here.

    Args:
        value: as in YAML, for example a mapping with `class_path` and `init_args`.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


register_type(Unchecked, serializer=lambda unchecked: unchecked.value)


def add_settings(parser: ArgumentParser, types: Mapping[str, Any]) -> None:
    """Give a parser every key of a YAML of fit, including the `config.yaml` of a run.

    Classes are not imported and their arguments are not checked, except those in `types`.

    Args:
        parser: to add to.
        types: of classes among the settings, by the name of the setting.
    """
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a YAML of fit; of several, the last one wins")
    options = options_of("fit")
    for name, option in options.items():
        if not name.startswith("data.") and _class_setting(name) in (None, name):
            is_class = option.nested and name not in types and option.default is not None
            default = Unchecked(option.default) if is_class else option.default
            parser.add_argument(f"--{name}", type=types.get(name) or _type(option), default=default)
    parser.add_class_arguments(DialogueData, "data", fail_untyped=False, sub_configs=True)
    link_settings(parser)


def link_settings(parser: ArgumentParser) -> None:
    """Take the tokenizer from the base, and the seed of the data from the one seed.

    Args:
        parser: with the settings of model and data, and `seed_everything`.
    """
    parser.link_arguments("model.base", "data.tokenizer")
    parser.link_arguments("model.revision", "data.tokenizer_revision")
    parser.link_arguments("seed_everything", "data.seed", compute_fn=int)


def drop_demo_validation(settings: Namespace, words: list[str]) -> None:
    """Unset the `data.validation_source` of configs/demo.yaml where another `data.source` replaces the demo's rows.

    Args:
        settings: of one command, parsed; changed in place.
        words: the command line. A validation source that is named on it is kept, and that of a single config file,
            which names the rows that belong to it.
    """
    sources = [settings.data.source] if isinstance(settings.data.source, str) else settings.data.source
    options = [word.partition("=")[0] for word in words]
    replaced = "--data.source" in options or len(config_files(words)) > 1
    named = "--data.validation_source" in options
    if settings.data.validation_source != "demo" or "demo" in sources or named or not replaced:
        return
    settings.data.validation_source = None
    text = (
        "data: the validation_source of the config, demo, belongs to the demo's rows: a share of %s is validated "
        "instead; to keep it, add --data.validation_source demo"
    )
    log.info(text, ", ".join(sources))


def _class_setting(name: str) -> str | None:
    """The setting that takes a class, for the name of that setting or of one of the class's arguments."""
    options, parts = options_of("fit"), name.split(".")
    prefixes = (".".join(parts[:end]).removesuffix("+") for end in range(1, len(parts) + 1))
    return next((prefix for prefix in prefixes if prefix in options and options[prefix].nested), None)


def _type(option: Option) -> Any:
    if not option.nested:
        return reduce(or_, map(_single_type, option.types))
    in_list = any(isinstance(kind, dict) and "list" in kind for kind in option.types)
    return list[Unchecked] | Unchecked | None if in_list else Unchecked | None


def _single_type(kind: Any) -> Any:
    if isinstance(kind, str):
        return _TYPES[kind]
    if "choices" in kind:
        return Literal[tuple(kind["choices"])]
    return list[reduce(or_, map(_single_type, kind["list"]))]  # type: ignore[misc]


def parse_settings(parser: ArgumentParser, words: list[str], types: Mapping[str, Any]) -> Namespace:
    """Parse options with a parser of `add_settings`.

    Args:
        parser: from `add_settings`, with the command's own options.
        words: the command and its options.
        types: as `add_settings` got them.

    Returns:
        The settings. `trainer.callbacks` is a list of namespaces with `class_path` and `init_args`.

    Raises:
        SettingError: a key or value that the parser does not take.
    """
    words, allowed = take_allowed_code(words)
    try:
        settings: Namespace = parser.parse_args(_fold_class_arguments(words[1:], types))
    except argparse.ArgumentError as error:
        raise explain(error, words) from error
    for name, option in options_of("fit").items():
        if option.nested and "." in name and name not in types and name in settings:
            settings[name] = _unwrapped(settings[name])
            check_origins(name, settings[name], allowed)
    settings.trainer.callbacks = _callbacks(settings.trainer.callbacks)
    drop_demo_validation(settings, words)
    check_integers(settings.as_dict())
    return settings


def _unwrapped(value: Any) -> Any:
    if isinstance(value, list):
        return [item.value for item in value]
    return value.value if isinstance(value, Unchecked) else value


def _fold_class_arguments(words: list[str], types: Mapping[str, Any]) -> list[str]:
    """Put the arguments of a class, such as `--trainer.callbacks.keep 3`, into the option before that names the class.

    Arguments of a class that no option before names are left out.
    """
    folded: list[str] = []
    class_at: dict[str, int] = {}  # where in folded the class of a setting is
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        setting = _class_setting(name[2:]) if name.startswith("--") else None
        if setting is None or setting in types:
            folded.append(word)
            continue
        value = value if equals else next(remaining, "")
        key = name[2:].removeprefix(setting).removeprefix("+").removeprefix(".init_args").removeprefix(".")
        if not key:
            class_at[setting] = len(folded)
            folded.append(f"{name}={value}")
        elif setting in class_at:
            option, _, chosen = folded[class_at[setting]].partition("=")
            folded[class_at[setting]] = f"{option}={json.dumps(_with_argument(yaml.safe_load(chosen), key, value))}"
    return folded


def _with_argument(chosen: Any, key: str, value: str) -> Any:
    """A class as YAML has it, a name or a mapping, with one more argument."""
    mapping = {"class_path": chosen} if isinstance(chosen, str) else chosen
    if not isinstance(mapping, dict):
        return chosen
    return mapping | {"init_args": {**(mapping.get("init_args") or {}), key: yaml.safe_load(value)}}


def _callbacks(chosen: Any) -> list[Namespace]:
    """The callbacks of a config, each of which is a class or its name."""
    each = chosen if isinstance(chosen, list) else [] if chosen is None else [chosen]
    mappings = ({"class_path": item} if isinstance(item, str) else dict(item) for item in each)
    return [
        Namespace({"class_path": str(mapping["class_path"]), "init_args": mapping.get("init_args") or {}})  # type: ignore[no-untyped-call]
        for mapping in mappings
    ]


def check_integers(settings: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse integers that no library can hold.

    Args:
        settings: of one command, parsed, as plain mappings.
        prefix: of their names.

    Raises:
        SettingError: it names the setting.
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            check_integers(value, f"{prefix}{key}.")
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise SettingError(f"{prefix}{key}", f"a number of {len(str(abs(value)))} digits", "Write a smaller one.")


def check_trainer(settings: Namespace) -> None:
    """Refuse settings that Lightning's Trainer cannot work with, each by its key.

    Args:
        settings: of one command, parsed.

    Raises:
        SettingError: it names the key.
    """
    from lightning.pytorch.strategies import StrategyRegistry  # preview and doctor import no Lightning

    seed, trainer = settings.seed_everything, settings.trainer
    if not 0 <= int(seed) < 2**32:
        raise SettingError("seed_everything", f"{seed} is no seed", "Set a number from 0 to 4294967295.")
    _check_choice("accelerator", trainer.accelerator, ["auto", "cpu", "gpu", "cuda", "mps"])
    _check_choice("strategy", trainer.strategy, ["auto", *StrategyRegistry.available_strategies()])
    _check_devices(trainer.devices, trainer.accelerator)
    for key, minimum in _MINIMUM.items():
        value = trainer[key]
        if value == "auto":
            continue
        if value is not None and value < minimum:
            raise SettingError(f"trainer.{key}", f"{value} is too low", f"Set {minimum} or more.")
        if isinstance(value, int) and value > _MAX_INT:
            raise SettingError(f"trainer.{key}", f"{str(value)[:20]}… is too large", f"Set {_MAX_INT} or less.")
    clip = trainer.gradient_clip_val
    if clip is not None and not 0 <= clip < math.inf:
        raise SettingError("trainer.gradient_clip_val", f"{clip} is no length", "Set 1.0, or null for no clipping.")
    if trainer.limit_train_batches == 0:
        raise SettingError("trainer.limit_train_batches", "0 leaves nothing to train on", "Set 1 or more, or a share.")
    if trainer.val_check_interval == 0:
        raise SettingError("trainer.val_check_interval", "0 is no interval", "Set 1.0: once an epoch.")
    _check_sharding(trainer, settings.model.shard_base)


def _check_sharding(trainer: Namespace, shard_base: bool) -> None:
    """Refuse strategies that shard something other than the base, and what a sharded base cannot work with."""
    chosen = trainer.strategy
    name = str(chosen.class_path if isinstance(chosen, Namespace) else chosen).rpartition(".")[2]
    fix = "Take all of configs/overlay/fsdp.yaml; or, for GPUs that hold the base, ddp.yaml without model.shard_base."
    if name in _FIRST_FSDP:
        found = f"{name} is torch's first FSDP, which wants one dtype in a layer, and base and adapter have two"
        raise SettingError("trainer.strategy", found, fix)
    if name == "ModelParallelStrategy":
        found = f"{name} leaves sharding and the exchange of gradients to the model, and cannot resume this one"
        raise SettingError("trainer.strategy", found, fix)
    if not shard_base:
        return
    if name not in ("ddp", "DDPStrategy"):
        raise SettingError("trainer.strategy", f"model.shard_base needs ddp for the adapter, not {name}", fix)
    if trainer.inference_mode:
        found = "weights that are gathered in torch's inference mode for validation could not be trained on after it"
        raise SettingError("trainer.inference_mode", found, fix)


def _check_choice(key: str, value: Any, choices: list[str]) -> None:
    if isinstance(value, str) and value not in choices:
        shown = [word for word in choices if "_find_unused" not in word and "_fork" not in word]
        raise SettingError(f"trainer.{key}", f"there is no {value!r}", f"Use one of: {', '.join(shown)}.")


def _check_devices(devices: Any, accelerator: Any) -> None:
    all_devices = ("auto", -1, "-1")
    text = isinstance(devices, str) and not devices.replace(",", "").replace(" ", "").isdecimal()
    count = int(devices) if isinstance(devices, str) and devices.isdecimal() else devices
    if (devices in all_devices and accelerator != "cpu") or devices == "auto":
        return
    if text or count == [] or (isinstance(count, int) and not 1 <= count <= _MOST_DEVICES):
        gpus = "" if accelerator == "cpu" else ", -1 for all, or a list of numbers of GPUs"
        fix = f"Set 1 or more, up to {_MOST_DEVICES}{gpus}."
        raise SettingError("trainer.devices", f"{devices!r} is no number of devices", fix)
