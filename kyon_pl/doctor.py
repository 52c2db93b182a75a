"""Whether a run can work on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.errors import MachineError
from kyon_pl.lora import frozen_dtype

# what a run needs beside the frozen weights: adapter, optimizer, activations of one short checkpointed batch, CUDA's
# context
WORKING_BYTES = 1.5 * 2**30
# above this many parameters a step on a CPU takes minutes
CPU_PARAMETERS = 1_000_000_000


def check_run(config: ChatGLM2Config, precision: str, device: torch.device) -> None:
    """Refuse a run that cannot work here, before anything large is downloaded.

    Args:
        config: the shape of the base.
        precision: `trainer.precision` as the user wrote it, before Lightning replaces what a CPU cannot do.
        device: where this process would train.

    Raises:
        MachineError: no GPU for a large base, 16-mixed without a GPU, or too little memory for the frozen weights.
        SettingError: a precision that does not keep trained weights in float32.
    """
    dtype = frozen_dtype(precision)
    parameters = config.parameter_count
    needed = parameters * dtype.itemsize
    size = f"{parameters / 1e9:.1f} billion parameters, {needed / 2**30:.1f} GiB in {str(dtype).removeprefix('torch.')}"
    if device.type == "cpu" and parameters > CPU_PARAMETERS:
        raise MachineError(
            where="model.base",
            found=f"this base has {size}, and no GPU was found or chosen: a single step would take minutes on a CPU",
            fix="Run on a machine with an NVIDIA GPU of 16 GB or more, or try everything with the demo: "
            "kyon-pl fit --config configs/demo.yaml",
        )
    if device.type == "cpu" and precision == "16-mixed":
        raise MachineError(
            where="trainer.precision",
            found="16-mixed needs a GPU, and on a CPU Lightning would silently train in bfloat16 instead",
            fix="Add --trainer.precision 32-true (or bf16-mixed) for a CPU",
        )
    available = memory_bytes(device)
    if needed + (WORKING_BYTES if device.type == "cuda" else 0) > available:
        raise MachineError(
            where="model.base",
            found=f"this base has {size} and does not fit into the {available / 2**30:.1f} GiB of memory of {device}",
            fix="Use a half-precision setting (--trainer.precision 16-mixed), a larger GPU, or a smaller base",
        )


def memory_bytes(device: torch.device) -> int:
    """All memory of a GPU, or all of this machine's (of its control group's, where that is less), in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        return min(total, int(text))
    return total
