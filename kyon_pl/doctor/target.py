"""The devices that a run is meant for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.doctor.check import CPU_PARAMETERS
from kyon_pl.doctor.findings import GIB
from kyon_pl.doctor.machine import Machine
from kyon_pl.errors import SettingError


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
