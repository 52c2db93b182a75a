"""The devices that a run is meant for, and the check at the start of every run that they can train its base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.doctor.machine import Machine, memory_bytes
from kyon_pl.doctor.memory import BatchShape, MemorySettings, memory_estimate, needed_bytes
from kyon_pl.doctor.report import GIB
from kyon_pl.errors import MachineError, SettingError
from kyon_pl.lora import Quantization, frozen_dtype, reference_lora

if TYPE_CHECKING:
    from jsonargparse import Namespace

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
    """

    device_type: str
    is_local: bool
    devices: int
    available_bytes: int | None


def choose_target(
    trainer: Namespace, precision: str, config: ChatGLM2Config | None, machine: Machine, gpu_gib: float | None
) -> Target:
    """Choose the devices as Lightning would; a GPU for a run that this machine cannot do without one.

    Args:
        trainer: the settings of the trainer.
        precision: `trainer.precision`.
        config: the configuration of the base; None: unknown.
        machine: this machine.
        gpu_gib: memory in GiB of a GPU of another machine to plan for; None: plan for this machine.

    Raises:
        SettingError: `trainer.devices` is not a number of devices.
    """
    nodes = int(trainer.num_nodes or 1)
    if not _needs_gpu(str(trainer.accelerator), precision, config, machine, planned=gpu_gib is not None):
        return Target("cpu", True, _device_count(trainer.devices, 1) * nodes, machine.memory_bytes)
    if gpu_gib is not None:
        return Target("cuda", False, _device_count(trainer.devices, 1) * nodes, int(gpu_gib * GIB))
    smallest = min((gpu.memory_bytes for gpu in machine.gpus), default=None)
    devices = _device_count(trainer.devices, len(machine.gpus) or 1) * nodes
    return Target("cuda", machine.cuda_available, devices, smallest)


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
