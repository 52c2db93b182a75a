"""Config files by path or name, and settings that are refused before anything is built from them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from kyon_pl.errors import SettingError

CONFIGS = Path(__file__).parents[1] / "configs"  # in a clone a link to configs/


def names() -> list[str]:
    """Of all of them, such as `lora` and `overlay/ddp`."""
    return sorted(file.relative_to(CONFIGS).with_suffix("").as_posix() for file in CONFIGS.rglob("*.yaml"))


def with_named_configs(words: list[str]) -> list[str]:
    """A command line with the paths of the configs that it names.

    What is a file where one stands is that file. What is none, but is the name of a config of the package, also as
    `configs/NAME.yaml`, is that config. A YAML file that is not there is refused at once, before the seconds that a
    parser's imports take; everything else stays as it is, for the parser to refuse.

    Args:
        words: of the command line.

    Raises:
        SettingError: there is no such YAML file.
    """
    found = list(words)
    for place, option, file in _configs(words):
        found[place] = option + _path(file)
    return found


def config_files(words: list[str]) -> list[str]:
    """What a command line names as configs, in any of a parser's spellings.

    Args:
        words: of the command line.
    """
    return [file for _, _, file in _configs(words)]


def _configs(words: list[str]) -> Iterator[tuple[int, str, str]]:
    """The place of each word that names a config, what stands before the name in it, and the name."""
    for place, word in enumerate(words):
        if word in ("--config", "-c"):
            if place + 1 < len(words):
                yield place + 1, "", words[place + 1]
        elif match := re.match("--config=|-c=?", word):
            yield place, match[0], word[match.end() :]


def _path(word: str) -> str:
    name = word.removeprefix("configs/").removesuffix(".yaml")
    if Path(word).is_file():
        return word
    if name in names():
        return str(CONFIGS / f"{name}.yaml")
    if word.endswith((".yaml", ".yml")):
        close = difflib.get_close_matches(name.removesuffix(".yml"), names(), n=1)
        fix = f"Did you mean '{close[0]}'? " if close else ""
        fix += f"Give the path of a YAML file, or one of the names {', '.join(names())}"
        raise SettingError("--config", f"there is no file '{word}'", fix)
    return word


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
