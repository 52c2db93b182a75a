"""Settings that can be refused by looking at them: what stands in a YAML file, and numbers for the trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from kyon_pl.errors import SettingError
from kyon_pl.named_configs import config_files

REMOTE_CODE = "trust_remote_code"
_SECTIONS = ("trainer", "model", "data")
_MOST_NESTED = 100
_FSDP1 = "is torch's first FSDP, which wants one dtype in a layer, and the frozen base and its adapter have two"
_OTHER_SHARDING = {
    "ModelParallelStrategy": "leaves sharding and the exchange of gradients to the model, and cannot resume this one",
    **dict.fromkeys(("FSDPStrategy", "fsdp", "fsdp_cpu_offload"), _FSDP1),
}
_LEAST = {"accumulate_grad_batches": 1, "log_every_n_steps": 1, "num_nodes": 1, "max_epochs": -1, "max_steps": -1}


def no_remote_code(where: str) -> SettingError:
    """Why `trust_remote_code` is no setting."""
    return SettingError(
        where,
        "no code from a repository is ever run: model and tokenizer are part of kyon_pl, and only tensors are read",
        f"Leave {REMOTE_CODE} out; a base in ChatGLM2's layout needs none of its own code.",
    )


def check_config_files(words: list[str]) -> None:
    """Read the YAML files of a command line for what a parser lets pass, or says without a line.

    Args:
        words: of the command line. A file that is not there is left to the parser.

    Raises:
        SettingError: no UTF-8, no YAML, no mapping, a key twice, or `trust_remote_code`; it names file and line.
    """
    for file in map(Path, config_files(words)):
        if file.is_file():
            _check_file(file)


def _check_file(file: Path) -> None:
    fix = "Write settings as `key: value`, as in configs/lora.yaml."
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        found = f"not UTF-8: {error.reason} at byte {error.start + 1}"
        raise SettingError(str(file), found, "Save the file as UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SettingError(f"{file}{line}", f"not YAML: {error.problem}", "Correct the file at that line.") from None
    except yaml.YAMLError as error:
        raise SettingError(str(file), f"not YAML: {str(error).splitlines()[0]}", "Correct the file.") from None
    except RecursionError:
        raise SettingError(str(file), "not YAML that can be read: nested too deeply", fix) from None
    if not isinstance(root, yaml.MappingNode):
        raise SettingError(str(file), f"{_kind(root)} in place of settings", fix)
    for key, value in root.value:
        if key.value in _SECTIONS and not isinstance(value, yaml.MappingNode):
            raise SettingError(f"{_place(file, key)}: {key.value}", f"{_kind(value)} in place of settings", fix)
    _check_keys(file, root, depth=0)


def _check_keys(file: Path, node: yaml.Node, depth: int) -> None:
    if depth > _MOST_NESTED:
        raise SettingError(_place(file, node), "nested too deeply", "No setting is.")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(file, item, depth + 1)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name == REMOTE_CODE:
            raise no_remote_code(f"{_place(file, key)}: {name}")
        if name in lines:
            found = f"the key stands in line {lines[name]} too"
            raise SettingError(f"{_place(file, key)}: {name}", found, "Keep one of them, with what belongs under it.")
        lines[name] = line
        _check_keys(file, value, depth + 1)


def _place(file: Path, node: yaml.Node) -> str:
    return f"{file}, line {node.start_mark.line + 1}"


def _kind(node: yaml.Node | None) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "a text" if isinstance(node, yaml.ScalarNode) and node.value else "nothing"


def check_trainer(settings: Namespace) -> None:
    """Refuse what Lightning's Trainer cannot work with, by key; the rest of its own checks are in its own words.

    Args:
        settings: of one command, parsed.

    Raises:
        SettingError: it names the key.
    """
    from lightning.pytorch.strategies import StrategyRegistry  # a second, which chat has no use for

    seed, trainer = settings.seed_everything, settings.trainer
    if not 0 <= int(seed) < 2**32:
        raise SettingError("seed_everything", f"{seed} is no seed", "Set a number from 0 to 4294967295.")
    _check_word("accelerator", trainer.accelerator, ["auto", "cpu", "gpu", "cuda", "mps"])
    _check_word("strategy", trainer.strategy, ["auto", *StrategyRegistry.available_strategies()])
    _check_devices(trainer.devices, trainer.accelerator)
    for key, least in _LEAST.items():
        value = trainer[key]
        if value is not None and value < least:
            raise SettingError(f"trainer.{key}", f"{value} is too low", f"Set {least} or more.")
    clip = trainer.gradient_clip_val
    if clip is not None and not 0 <= clip < math.inf:
        raise SettingError("trainer.gradient_clip_val", f"{clip} is no length", "Set 1.0, or null for no clipping.")
    if trainer.limit_train_batches == 0:
        raise SettingError("trainer.limit_train_batches", "0 leaves nothing to train on", "Set 1 or more, or a share.")
    if trainer.val_check_interval == 0:
        raise SettingError("trainer.val_check_interval", "0 is no interval", "Set 1.0: once an epoch.")
    _check_sharding(trainer, settings.model.shard_base)


def _check_sharding(trainer: Namespace, shard_base: bool) -> None:
    """What a sharded base needs, and strategies that would shard something else."""
    chosen = trainer.strategy
    name = str(chosen.class_path if isinstance(chosen, Namespace) else chosen).rpartition(".")[2]
    fix = "Take all of configs/overlay/fsdp.yaml; or, for GPUs that hold the base, ddp.yaml without model.shard_base."
    if name in _OTHER_SHARDING:
        raise SettingError("trainer.strategy", f"{name} {_OTHER_SHARDING[name]}", fix)
    if not shard_base:
        return
    if name not in ("ddp", "DDPStrategy"):
        raise SettingError("trainer.strategy", f"model.shard_base needs ddp for the adapter, not {name}", fix)
    if trainer.inference_mode:
        found = "weights that are gathered in torch's inference mode for validation could not be trained on after it"
        raise SettingError("trainer.inference_mode", found, fix)


def _check_word(key: str, value: Any, known: list[str]) -> None:
    if isinstance(value, str) and value not in known:
        shown = [word for word in known if "_find_unused" not in word and "_fork" not in word]
        raise SettingError(f"trainer.{key}", f"there is no {value!r}", f"Use one of: {', '.join(shown)}.")


def _check_devices(devices: Any, accelerator: Any) -> None:
    all_of_them = ("auto", -1, "-1")
    text = isinstance(devices, str) and not devices.replace(",", "").replace(" ", "").isdecimal()
    count = int(devices) if isinstance(devices, str) and devices.isdecimal() else devices
    if (devices in all_of_them and accelerator != "cpu") or devices == "auto":
        return
    if text or count == [] or (isinstance(count, int) and count < 1):
        fix = "Set 1 or more" + ("." if accelerator == "cpu" else ", -1 for all, or a list of numbers of GPUs.")
        raise SettingError("trainer.devices", f"{devices!r} is no number of devices", fix)
