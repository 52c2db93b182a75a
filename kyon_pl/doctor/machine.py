"""What this machine has."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants

from kyon_pl.doctor.check import memory_bytes
from kyon_pl.doctor.report import Finding, gib

# where torch's loader workers hand over their batches
SHARED_MEMORY = Path("/dev/shm")
# The oldest driver for a CUDA of that major version.
# Source: NVIDIA, CUDA Toolkit release notes, table "CUDA Toolkit and Minimum Required Driver Version"
OLDEST_DRIVER = {12: 525, 13: 580}


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use.

    Attributes:
        name: as its maker calls it.
        memory_bytes: all of its memory.
        free_bytes: what no process holds now.
        compute_capability: such as (9, 0).
        has_kernels: whether this torch was built for it.
    """

    name: str
    memory_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int]
    has_kernels: bool


@dataclass(frozen=True)
class Machine:
    """What a run could use here.

    Attributes:
        system: operating system and kind of processor.
        cpus: cores that this process may use.
        memory_bytes: of the machine or of its control group; None where the system does not tell.
        run_folder: where runs would be written.
        run_folder_free_bytes: room there.
        cache_folder: huggingface_hub's cache.
        cache_free_bytes: room there.
        shared_memory_bytes: of `/dev/shm`; None where there is none.
        torch_version: of torch.
        torch_cuda: the CUDA that torch was built with; None: a build without.
        cuda_available: whether torch can use a GPU of NVIDIA's here.
        mps_available: whether torch sees a GPU of Apple's.
        driver: NVIDIA's driver; None: there is none.
        gpus: those that torch can use.
    """

    system: str
    cpus: int
    memory_bytes: int | None
    run_folder: str
    run_folder_free_bytes: int
    cache_folder: str
    cache_free_bytes: int
    shared_memory_bytes: int | None
    torch_version: str
    torch_cuda: str | None
    cuda_available: bool
    mps_available: bool
    driver: str | None
    gpus: tuple[Gpu, ...]


def look_at_machine(run_folder: Path) -> Machine:
    """Look.

    Args:
        run_folder: where the run would be written.
    """
    available = torch.cuda.is_available()
    run_folder, cache = run_folder.absolute(), Path(constants.HF_HUB_CACHE)
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cpus=len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1,
        memory_bytes=None if platform.system() == "Windows" else memory_bytes(torch.device("cpu")),
        run_folder=str(run_folder),
        run_folder_free_bytes=free_bytes(run_folder),
        cache_folder=str(cache),
        cache_free_bytes=free_bytes(cache),
        shared_memory_bytes=shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None,
        torch_version=torch.__version__,
        torch_cuda=torch.version.cuda,
        cuda_available=available,
        mps_available=torch.backends.mps.is_available(),
        driver=driver_version(),
        gpus=tuple(_gpu(index) for index in range(torch.cuda.device_count())) if available else (),
    )


def free_bytes(folder: Path) -> int:
    """Room for a folder that need not be there yet."""
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.is_dir())).free


def driver_version() -> str | None:
    """NVIDIA's driver as `nvidia-smi` tells it; None: there is no such program, or it finds no driver."""
    if not (program := shutil.which("nvidia-smi")):
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(told.stdout.split()), None)


def machine_findings(machine: Machine) -> Iterator[Finding]:
    """The lines about this machine, but those of Python and packages."""
    yield _system(machine)
    yield _torch(machine)
    for gpu in machine.gpus:
        yield _gpu_finding(gpu)
    memory = gib(machine.memory_bytes) if machine.memory_bytes is not None else "unknown"
    yield Finding("memory", "ok", f"{memory}, {machine.cpus} cores")
    yield Finding("disk for runs", "ok", f"{gib(machine.run_folder_free_bytes)} free at {machine.run_folder}")
    yield Finding("disk for models", "ok", f"{gib(machine.cache_free_bytes)} free at {machine.cache_folder}")
    if machine.shared_memory_bytes is not None:
        yield Finding("shared memory", "ok", f"{gib(machine.shared_memory_bytes)} at {SHARED_MEMORY}")


def _system(machine: Machine) -> Finding:
    if machine.system.startswith("Windows"):
        return Finding("system", "missing", f"{machine.system}: not supported", "Use WSL 2, which is Linux")
    if machine.system.startswith("Darwin"):
        fix = "The demo and everything but training 6B: with --trainer.accelerator cpu"
        return Finding("system", "warning", f"{machine.system}: Apple's GPU (MPS) is not supported", fix)
    return Finding("system", "ok", machine.system)


def _torch(machine: Machine) -> Finding:
    name, version = "torch and GPU", machine.torch_version
    if machine.cuda_available:
        driver = f", driver {machine.driver}" if machine.driver else ""
        return Finding(name, "ok", f"torch {version} with CUDA {machine.torch_cuda}{driver}")
    if machine.driver is None:
        built = f"with CUDA {machine.torch_cuda}" if machine.torch_cuda else "without CUDA"
        return Finding(name, "warning", f"torch {version} {built}, and no NVIDIA driver: a CPU machine")
    if machine.torch_cuda is None:
        fix = "Install a torch with CUDA: https://pytorch.org/get-started/locally"
        found = f"torch {version} is a build without CUDA, though a GPU and its driver {machine.driver} are here"
        return Finding(name, "missing", found, fix)
    found = f"torch {version} with CUDA {machine.torch_cuda} cannot use the GPU of driver {machine.driver}"
    oldest = OLDEST_DRIVER.get(int(machine.torch_cuda.split(".")[0]))
    if oldest and int(machine.driver.split(".")[0]) < oldest:
        fix = f"Update the driver to {oldest} or newer, or install a torch for an older CUDA"
        return Finding(name, "missing", f"{found}, which is too old for it", fix)
    fix = 'Look at CUDA_VISIBLE_DEVICES and at what `python -c "import torch; torch.zeros(1).cuda()"` says'
    return Finding(name, "missing", found, fix)


def _gpu(index: int) -> Gpu:
    properties, capability = torch.cuda.get_device_properties(index), torch.cuda.get_device_capability(index)
    free, whole = torch.cuda.mem_get_info(index)
    return Gpu(properties.name, whole, free, capability, _has_kernels(capability, torch.cuda.get_arch_list()))


def _has_kernels(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether one of `sm_75`, `sm_80`, … is this GPU's, or an older one of the same major version, whose code it runs;
    `compute_…` is translated for newer ones.
    """
    numbers = [(name.split("_")[0], int("".join(c for c in name.split("_")[1] if c.isdigit()))) for name in built_for]
    own = capability[0] * 10 + capability[1]
    return any(number <= own and (kind == "compute" or number // 10 == capability[0]) for kind, number in numbers)


def _gpu_finding(gpu: Gpu) -> Finding:
    architecture = "sm_{}{}".format(*gpu.compute_capability)
    found = f"{gpu.name}, {architecture}, {gib(gpu.memory_bytes)}, {gib(gpu.free_bytes)} of it free"
    if not gpu.has_kernels:
        fix = "Install a torch that was built for it (an older CUDA for older GPUs)"
        return Finding("GPU", "missing", f"{found}; this torch was not built for it", fix)
    return Finding("GPU", "ok", found)
