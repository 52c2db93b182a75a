"""The check that every run begins with."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.doctor.memory import MemorySettings, Slots, memory_estimate, needed_bytes
from kyon_pl.errors import MachineError
from kyon_pl.lora import Quantization, frozen_dtype, reference_lora

# above this many parameters a step on a CPU takes minutes
CPU_PARAMETERS = 1_000_000_000
# no run is refused because of its batches here: rows may be short, and MemoryGuard tries the real ones
LEAST_BATCH = Slots(rows=1, slots=512, trained_tokens=64)


def check_run(
    config: ChatGLM2Config,
    precision: str,
    device: torch.device,
    sharded_over: int = 1,
    quantization: Quantization | None = None,
) -> None:
    """Refuse a run that cannot work here, before anything large is downloaded.

    Args:
        config: the shape of the base.
        precision: `trainer.precision` as the user wrote it, before Lightning replaces what a CPU cannot do.
        device: where this process would train.
        sharded_over: ranks that share out the base; 1: each has all of it.
        quantization: `model.quantization`.

    Raises:
        MachineError: no GPU for a large base, 16-mixed without a GPU, or too little memory even for small batches.
        SettingError: a precision that does not keep trained weights in float32.
    """
    check_device(config, precision, device.type)
    least = needed_bytes(least_memory(config, precision, device.type, sharded_over, quantization), device.type)
    available = memory_bytes(device)
    if least > available:
        smaller = "" if quantization == "nf4" else "configs/overlay/qlora.yaml, "
        raise MachineError(
            where="model.base",
            found=f"this base has {size(config, precision)} and does not fit into the {available / 2**30:.1f} GiB of "
            f"memory of {device}",
            fix=f"Use {smaller}a half-precision setting (--trainer.precision 16-mixed), a larger GPU, or several GPUs "
            "that share it out (configs/overlay/fsdp.yaml)",
        )


def check_device(config: ChatGLM2Config, precision: str, device_type: str) -> None:
    """Refuse what a CPU cannot do.

    Raises:
        MachineError: no GPU for a large base, or 16-mixed without a GPU.
        SettingError: a precision that does not keep trained weights in float32.
    """
    told = size(config, precision)
    if device_type == "cpu" and config.parameter_count > CPU_PARAMETERS:
        raise MachineError(
            where="model.base",
            found=f"this base has {told}, and no GPU was found or chosen: a single step would take minutes on a CPU",
            fix="Run on a machine with an NVIDIA GPU of 16 GB or more, or try everything with the demo: "
            "kyon-pl fit --config configs/demo.yaml",
        )
    check_precision(precision, device_type)


def check_precision(precision: str, device_type: str) -> None:
    """Refuse what a CPU cannot do with any base.

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


def least_memory(
    config: ChatGLM2Config,
    precision: str,
    device_type: str,
    sharded_over: int = 1,
    quantization: Quantization | None = None,
) -> int:
    """The peak of the smallest batch that is worth training on, in bytes."""
    settings = MemorySettings(
        precision=precision,
        lora=reference_lora(),
        checkpointing="full",
        quantization=quantization,
        attention="varlen",
        packed=True,
        training=LEAST_BATCH,
        validation=None,
        device_type=device_type,
        sharded_over=sharded_over,
    )
    return memory_estimate(config, settings).peak


def size(config: ChatGLM2Config, precision: str) -> str:
    """Parameters and weights of a base, in words."""
    dtype, parameters = frozen_dtype(precision), config.parameter_count
    weights = f"{parameters * dtype.itemsize / 2**30:.1f} GiB in {str(dtype).removeprefix('torch.')}"
    return f"{parameters / 1e9:.1f} billion parameters, {weights}"


def memory_bytes(device: torch.device) -> int:
    """All memory of a GPU, or all of this machine's (of its control group's, where that is less), in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        return min(total, int(text))
    return total
