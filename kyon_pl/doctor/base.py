"""The base model that a config names: its files, and the device that it is to run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from jsonargparse import Namespace

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.chatglm2.files import weight_files
from kyon_pl.demo import BASE
from kyon_pl.doctor.check import CPU_PARAMETERS
from kyon_pl.doctor.machine import Machine
from kyon_pl.doctor.report import GIB, Finding
from kyon_pl.errors import MissingFileError, SettingError
from kyon_pl.hub.download import MODEL_FILES, TOKENIZER_FILES

# ids under which the model of the default shape is published, in float16
PUBLISHED = ("THUDM/chatglm2-6b", "zai-org/chatglm2-6b")
PUBLISHED_WEIGHT_BYTES = 2
TOKENIZER_BYTES = 2**20


@dataclass(frozen=True)
class Base:
    """A base.

    Attributes:
        name: as `model.base` has it.
        folder: where its files are, all or some; None: nowhere here, or random weights.
        config: its shape; None: nobody here knows it.
        download_bytes: what is still to be downloaded; None: that depends on its shape.
    """

    name: str
    folder: Path | None
    config: ChatGLM2Config | None
    download_bytes: int | None


def look_at_base(name: str, revision: str | None, random_config: str | None) -> Base:
    """Look for a base in its folder, or in the Hub's cache.

    Args:
        name: `model.base`.
        revision: `model.revision`.
        random_config: `model.random_config`.

    Raises:
        MissingFileError: a folder without `config.json` or weights, or a name that is neither folder nor id.
        SettingError: a configuration that is not implemented.
        CheckpointError: an index of weights that cannot be read.
    """
    if name == "random":
        config = ChatGLM2Config.from_pretrained(random_config) if random_config else ChatGLM2Config()
        return Base(name, None, config, 0)
    folder = BASE if name == "demo" else Path(name).expanduser()
    if not folder.is_dir():
        return _in_cache(name, revision)
    if not (folder / "config.json").is_file():
        raise MissingFileError(str(folder), "no config.json", "Give the folder of a ChatGLM2 base.")
    config = ChatGLM2Config.from_pretrained(folder)
    weight_files(folder)
    return Base(name, folder, config, 0)


def base_finding(base: Base, machine: Machine) -> Finding:
    """Whether it is here, and whether there is room and leave to download what is not."""
    name = f"{base.name}, {_parameters(base.config)}" if base.config else base.name
    if base.download_bytes == 0:
        return Finding("base", "ok", f"{name}: {'made here' if base.folder is None else base.folder}")
    size = "of unknown size" if base.download_bytes is None else f"{base.download_bytes / 1e9:.1f} GB to download"
    found = f"{name}: {size}, into {machine.cache_folder}"
    if constants.HF_HUB_OFFLINE:
        fix = "Unset HF_HUB_OFFLINE and download it once, or name the folder of a copy as model.base"
        return Finding("base", "missing", f"{found}, and HF_HUB_OFFLINE forbids to fetch it", fix)
    if (base.download_bytes or 0) > machine.cache_free_bytes:
        fix = "Make room there, or set HF_HOME to a larger disk"
        return Finding("base", "missing", f"{found}, and {machine.cache_free_bytes / 1e9:.1f} GB are free there", fix)
    if base.config is None:
        fix = f"Fetch its shape, one kilobyte: hf download {base.name} config.json"
        return Finding("base", "warning", found, fix)
    return Finding("base", "ok", f"{found}, at the first run")


def _in_cache(name: str, revision: str | None) -> Base:
    shape = ChatGLM2Config() if name in PUBLISHED else None
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError as error:
        text = "there is no such folder, and it is not the id of a repository either"
        fix = "Name a folder that exists, or an id such as THUDM/chatglm2-6b."
        raise MissingFileError(name, text, fix) from error
    if not isinstance(found, str):  # None, or a mark that the repository is known not to have it
        return Base(name, None, shape, _size(shape) if shape else None)
    folder = Path(found).parent
    config = ChatGLM2Config.from_pretrained(folder)
    try:
        weight_files(folder)
    except MissingFileError:
        return Base(name, folder, config, max(1, _size(config) - sum(_present(folder))))
    tokenizer = (folder / "tokenizer.model").is_file()
    return Base(name, folder, config, 0 if tokenizer else TOKENIZER_BYTES)


def _parameters(config: ChatGLM2Config) -> str:
    count = config.parameter_count
    return f"{count / 1e9:.2f} billion parameters" if count >= 1e9 else f"{count / 1e6:.1f} million parameters"


def _size(config: ChatGLM2Config) -> int:
    return config.parameter_count * PUBLISHED_WEIGHT_BYTES + TOKENIZER_BYTES


def _present(folder: Path) -> Iterator[int]:
    """The sizes of the wanted files that are in the cache already."""
    for file in {file for pattern in (*MODEL_FILES, *TOKENIZER_FILES) for file in folder.glob(pattern)}:
        yield os.stat(file).st_size  # noqa: PTH116 (of what the link points to)


@dataclass(frozen=True)
class Target:
    """Devices.

    Attributes:
        device_type: `cuda` or `cpu`.
        here: whether this machine has them.
        devices: how many the run takes, over all nodes.
        available_bytes: memory of one of them, here or as planned for; None: nobody knows.
    """

    device_type: str
    here: bool
    devices: int
    available_bytes: int | None


def choose_target(
    trainer: Namespace, precision: str, config: ChatGLM2Config | None, machine: Machine, gpu_gib: float | None
) -> Target:
    """What Lightning would choose here; or what a run that cannot work here is meant for.

    Args:
        trainer: the settings of the trainer.
        precision: its precision.
        config: the shape of the base; None if nobody here knows it.
        machine: this one.
        gpu_gib: the memory of another machine's GPU to plan for, in GiB; None: for this machine.

    Raises:
        SettingError: a number of devices that is none.
    """
    nodes = int(trainer.num_nodes or 1)
    if not _needs_gpu(str(trainer.accelerator), precision, config, machine, planned=gpu_gib is not None):
        return Target("cpu", True, _count(trainer.devices, 1) * nodes, machine.memory_bytes)
    if gpu_gib is not None:
        return Target("cuda", False, _count(trainer.devices, 1) * nodes, int(gpu_gib * GIB))
    smallest = min((gpu.memory_bytes for gpu in machine.gpus), default=None)
    return Target("cuda", machine.cuda_available, _count(trainer.devices, len(machine.gpus) or 1) * nodes, smallest)


def _needs_gpu(
    accelerator: str, precision: str, config: ChatGLM2Config | None, machine: Machine, *, planned: bool
) -> bool:
    """Unless the CPU is asked for, or is all there is and is enough."""
    if accelerator == "cpu":
        return False
    if planned or machine.cuda_available or accelerator in ("gpu", "cuda"):
        return True
    return precision == "16-mixed" or (config is not None and config.parameter_count > CPU_PARAMETERS)


def _count(devices: Any, there: int) -> int:
    """How many devices `trainer.devices` takes of those that are there."""
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part.strip()]
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1):
        return there
    if not isinstance(devices, int):
        raise SettingError("trainer.devices", repr(devices), "Give a number, a list of numbers, or auto")
    return devices
