"""The devices that a run is meant for, and the check at the start of every run that they can train its base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.doctor.machine import Machine, held_bytes, memory_bytes
from kyon_pl.doctor.memory import CONTEXT_BYTES, BatchShape, MemorySettings, memory_estimate, needed_bytes
from kyon_pl.doctor.report import GIB
from kyon_pl.doctor.speed import Card, card_of
from kyon_pl.errors import MachineError, SettingError
from kyon_pl.lora import Quantization, frozen_dtype, reference_lora

if TYPE_CHECKING:
    from jsonargparse import Namespace

# with little free memory the allocator still left 3 % unused (13.89 GiB reserved, 13.50 GiB allocated)
USABLE_SHARE = 0.97
# with more parameters, a step takes minutes on a CPU
MOST_CPU_PARAMETERS = 1_000_000_000
# A run is not refused because of its batches: rows may be short, and MemoryGuard tries the largest batch
SMALLEST_BATCH = BatchShape(rows=1, slots=512, trained_tokens=64)


def check_run(
    config: ChatGLM2Config,
    precision: str,
    device: torch.device,
    sharded_over: int = 1,
    quantization: Quantization | None = None,
) -> None:
    """Refuse a run that cannot work on this machine, before anything large is downloaded.

    Args:
        config: the configuration of the base.
        precision: `trainer.precision` from the settings; on a CPU Lightning may replace it later.
        device: the device of this process.
        sharded_over: number of ranks that share the base; 1: each rank has all of it.
        quantization: `model.quantization`.

    Raises:
        MachineError: no GPU for a large base, 16-mixed without a GPU, or too little memory even for small batches.
        SettingError: a precision that does not keep trained weights in float32.
    """
    check_device(config, precision, device.type)
    peak = minimum_peak_bytes(config, precision, device.type, sharded_over, quantization)
    available = memory_bytes(device)
    if needed_bytes(peak, device.type) > available:
        qlora = "" if quantization == "nf4" else "configs/overlay/qlora.yaml, "
        raise MachineError(
            where="model.base",
            found=f"this base has {_size_text(config, precision)} and does not fit into the {available / GIB:.1f} GiB "
            f"of memory of {device}",
            fix=f"Use {qlora}a half-precision setting (--trainer.precision 16-mixed), a larger GPU, or several GPUs "
            "that share the base (configs/overlay/fsdp.yaml)",
        )


def check_device(config: ChatGLM2Config, precision: str, device_type: str) -> None:
    """Refuse a base or a precision that a CPU cannot train.

    Raises:
        MachineError: no GPU for a large base, or 16-mixed without a GPU.
        SettingError: a precision that does not keep trained weights in float32.
    """
    size = _size_text(config, precision)
    if device_type == "cpu" and config.parameter_count > MOST_CPU_PARAMETERS:
        raise MachineError(
            where="model.base",
            found=f"this base has {size}, and no GPU was found or chosen: one step would take minutes on a CPU",
            fix="Run on a machine with an NVIDIA GPU of 16 GB or more, or try the demo: "
            "kyon-pl fit --config configs/demo.yaml",
        )
    check_precision(precision, device_type)


def check_precision(precision: str, device_type: str) -> None:
    """Refuse a precision that a CPU cannot train in, whatever the base.

    Raises:
        MachineError: 16-mixed without a GPU.
    """
    if device_type == "cpu" and precision == "16-mixed":
        raise MachineError(
            where="trainer.precision",
            found="16-mixed needs a GPU, and none was found or chosen; on a CPU Lightning would silently train in "
            "bfloat16 instead",
            fix="Run on a machine with an NVIDIA GPU. A CPU is enough for the demo, kyon-pl fit --config "
            "configs/demo.yaml, and for another small base with --trainer.precision 32-true (or bf16-mixed)",
        )


def minimum_peak_bytes(
    config: ChatGLM2Config,
    precision: str,
    device_type: str,
    sharded_over: int = 1,
    quantization: Quantization | None = None,
) -> int:
    """Peak of allocated memory with `SMALLEST_BATCH`, in bytes."""
    settings = MemorySettings(
        precision=precision,
        lora=reference_lora(),
        checkpointing="full",
        quantization=quantization,
        attention="varlen",
        packed=True,
        training=SMALLEST_BATCH,
        validation=None,
        device_type=device_type,
        sharded_over=sharded_over,
    )
    return memory_estimate(config, settings).peak


def _size_text(config: ChatGLM2Config, precision: str) -> str:
    dtype, parameters = frozen_dtype(precision), config.parameter_count
    weights = f"{parameters * dtype.itemsize / GIB:.1f} GiB in {str(dtype).removeprefix('torch.')}"
    return f"{parameters / 1e9:.1f} billion parameters, {weights}"


@dataclass(frozen=True)
class Target:
    """The devices that a run is meant for.

    Attributes:
        device_type: `cuda` or `cpu`.
        is_local: whether this machine has such a device.
        devices: number of devices, over all nodes.
        available_bytes: memory of one device, of this machine or as planned; None: unknown.
        card: the entry of the GPU in the table of known ones; None: it has none.
        capability: compute capability of the GPU; None: unknown.
        total_bytes: memory of one device if no other process held any; None: unknown.
    """

    device_type: str
    is_local: bool
    devices: int
    available_bytes: int | None
    card: Card | None = None
    capability: tuple[int, int] | None = None
    total_bytes: int | None = None


def local_target(trainer: Namespace) -> Target:
    """The devices of this machine that Lightning will use, with the free memory of the smallest.

    Args:
        trainer: the settings of the trainer.

    Raises:
        SettingError: `trainer.devices` is not a number of devices.
    """
    if not _on_gpu(trainer):
        return Target("cpu", True, count_devices(trainer), memory_bytes(torch.device("cpu")))
    visible = torch.cuda.device_count()
    indices = _device_indices(trainer.devices, _device_count(trainer.devices, visible))
    used = [index for index in indices if index < visible]
    smallest = min(used, key=usable_bytes, default=0)
    return Target(
        "cuda",
        True,
        count_devices(trainer),
        usable_bytes(smallest),
        card_of(torch.cuda.get_device_name(smallest)),
        min(torch.cuda.get_device_capability(index) for index in used or [0]),
        memory_bytes(torch.device("cuda", smallest)),
    )


def count_devices(trainer: Namespace) -> int:
    """The number of devices that Lightning will use, over all nodes.

    Args:
        trainer: the settings of the trainer.

    Raises:
        SettingError: `trainer.devices` is not a number of devices.
    """
    return _device_count(trainer.devices, torch.cuda.device_count() if _on_gpu(trainer) else 1) * int(
        trainer.num_nodes or 1
    )


def _on_gpu(trainer: Namespace) -> bool:
    return str(trainer.accelerator) in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def usable_bytes(index: int) -> int:
    """Memory of a GPU that this process may use: less what other processes hold, and at most its own limit.

    Args:
        index: number of the device.
    """
    properties = torch.cuda.get_device_properties(index)
    held = held_bytes().get(str(properties.uuid), 0)
    limit = torch.cuda.get_per_process_memory_fraction(index) * properties.total_memory
    return int(min(properties.total_memory - max(0, held - CONTEXT_BYTES), limit))


def _device_indices(devices: Any, count: int) -> list[int]:
    """The numbers of the devices of this machine that `trainer.devices` selects."""
    if isinstance(devices, str) and "," in devices:
        return [int(part) for part in devices.split(",") if part.strip()]
    return [int(index) for index in devices] if isinstance(devices, list) else [*range(count)]


def choose_target(
    trainer: Namespace,
    precision: str,
    config: ChatGLM2Config | None,
    machine: Machine,
    gpu_gib: float | None,
    card: Card | None = None,
) -> Target:
    """Choose the devices as Lightning would; a GPU for a run that this machine cannot do without one.

    Args:
        trainer: the settings of the trainer.
        precision: `trainer.precision`.
        config: the configuration of the base; None: unknown.
        machine: this machine.
        gpu_gib: memory in GiB of a GPU of another machine to plan for; None: that of `card`, or plan for this machine.
        card: GPU of another machine to plan for; None: it is known by its memory alone, or plan for this machine.

    Raises:
        SettingError: `trainer.devices` is not a number of devices.
    """
    planned_bytes = int(gpu_gib * GIB) if gpu_gib is not None else card.memory_bytes if card else None
    nodes = int(trainer.num_nodes or 1)
    if not _needs_gpu(str(trainer.accelerator), precision, config, machine, planned=planned_bytes is not None):
        return Target("cpu", True, _device_count(trainer.devices, 1) * nodes, machine.memory_bytes)
    if planned_bytes is not None:
        capability, devices = card.capability if card else None, _device_count(trainer.devices, 1) * nodes
        return Target("cuda", False, devices, planned_bytes, card, capability, planned_bytes)
    devices = _device_count(trainer.devices, len(machine.gpus) or 1) * nodes
    smallest = min(machine.gpus, key=lambda gpu: gpu.memory_bytes, default=None)
    if smallest is None:
        return Target("cuda", machine.cuda_available, devices, None)
    here = card_of(smallest.name), smallest.compute_capability, smallest.memory_bytes
    return Target("cuda", machine.cuda_available, devices, smallest.memory_bytes, *here)


def _needs_gpu(
    accelerator: str, precision: str, config: ChatGLM2Config | None, machine: Machine, *, planned: bool
) -> bool:
    """False if the CPU is chosen, or if there is no GPU and the CPU is enough."""
    if accelerator == "cpu":
        return False
    if planned or machine.cuda_available or accelerator in ("gpu", "cuda"):
        return True
    return precision == "16-mixed" or (config is not None and config.parameter_count > MOST_CPU_PARAMETERS)


def _device_count(devices: Any, available: int) -> int:
    """Number of devices that `trainer.devices` selects."""
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part.strip()]
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1):
        return available
    if not isinstance(devices, int):
        raise SettingError("trainer.devices", repr(devices), "Give a number, a list of numbers, or auto")
    return devices
