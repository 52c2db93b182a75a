"""The hardware, disks and drivers of this machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants

from kyon_pl.data.cache import cache_root, why_not_writable
from kyon_pl.doctor.report import Finding, gib

# torch's loader workers pass their batches through it
SHARED_MEMORY = Path("/dev/shm")
OLDEST_COMPILED = (8, 0)
# Major version of CUDA -> the oldest driver that it supports.
# Source: NVIDIA, CUDA Toolkit release notes, table "CUDA Toolkit and Minimum Required Driver Version"
OLDEST_DRIVER = {12: 525, 13: 580}


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use.

    Attributes:
        name: the model's name.
        memory_bytes: total memory.
        free_bytes: memory that no process uses now.
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
    """What this machine offers to a run.

    Attributes:
        system: operating system and architecture.
        cpus: cores that this process may use.
        memory_bytes: memory of the machine or of its control group; None: unknown.
        run_folder: the folder for runs.
        run_folder_free_bytes: free disk space for runs.
        cache_folder: huggingface_hub's cache.
        cache_free_bytes: free disk space for the cache.
        rows_folder: the cache of encoded rows.
        rows_free_bytes: free disk space for encoded rows.
        not_writable: the reason for each of these folders that cannot be written.
        shared_memory_bytes: size of `/dev/shm`; None: it does not exist.
        torch_version: the version of torch.
        torch_cuda: the CUDA version that torch was built with; None: built without CUDA.
        cuda_available: whether torch can use an NVIDIA GPU.
        mps_available: whether torch can use an Apple GPU.
        driver: the version of the NVIDIA driver; None: no driver.
        gpus: the GPUs that torch can use.
    """

    system: str
    cpus: int
    memory_bytes: int | None
    run_folder: str
    run_folder_free_bytes: int
    cache_folder: str
    cache_free_bytes: int
    rows_folder: str
    rows_free_bytes: int
    not_writable: dict[str, str]
    shared_memory_bytes: int | None
    torch_version: str
    torch_cuda: str | None
    cuda_available: bool
    mps_available: bool
    driver: str | None
    gpus: tuple[Gpu, ...]


def inspect_machine(run_folder: Path, cache_dir: str | None) -> Machine:
    """Collect the properties of this machine.

    Args:
        run_folder: the folder that the run would write to.
        cache_dir: `data.cache_dir`.
    """
    available = torch.cuda.is_available()
    run_folder, cache, rows = run_folder.absolute(), Path(constants.HF_HUB_CACHE), cache_root(cache_dir).absolute()
    errors = {str(folder): why_not_writable(folder) for folder in (run_folder, cache, rows)}
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cpus=len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1,
        memory_bytes=None if platform.system() == "Windows" else memory_bytes(torch.device("cpu")),
        run_folder=str(run_folder),
        run_folder_free_bytes=free_bytes(run_folder),
        cache_folder=str(cache),
        cache_free_bytes=free_bytes(cache),
        rows_folder=str(rows),
        rows_free_bytes=free_bytes(rows),
        not_writable={folder: error.strerror or str(error) for folder, error in errors.items() if error},
        shared_memory_bytes=shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None,
        torch_version=torch.__version__,
        torch_cuda=torch.version.cuda,
        cuda_available=available,
        mps_available=torch.backends.mps.is_available(),
        driver=driver_version(),
        gpus=tuple(_gpu(index) for index in range(torch.cuda.device_count())) if available else (),
    )


def memory_bytes(device: torch.device) -> int:
    """Total memory of a GPU, or of this machine or its control group, whichever is less, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        return min(total, int(text))
    return total


def free_bytes(folder: Path) -> int:
    """Free disk space for a folder, which need not exist yet."""
    parents = (folder, *folder.parents)  # Path.is_dir would raise a PermissionError
    return shutil.disk_usage(next(parent for parent in parents if os.path.isdir(parent))).free  # noqa: PTH112


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None if `nvidia-smi` is not installed or fails."""
    return next((fields[0] for fields in _ask_nvidia_smi("driver_version")), None)


def held_bytes() -> dict[str, int]:
    """Memory of each GPU that processes hold, by the GPU's UUID; empty if `nvidia-smi` is not installed or fails.

    Unlike torch's count this needs no CUDA context on each GPU, which would take half a GiB.
    """
    answers = _ask_nvidia_smi("uuid,memory.used")
    return {uuid.removeprefix("GPU-"): int(mib) * 2**20 for uuid, mib in answers if mib.isdecimal()}


def _ask_nvidia_smi(fields: str) -> list[list[str]]:
    """Fields of each GPU; none if the program is not installed or fails."""
    if not (program := shutil.which("nvidia-smi")):
        return []
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[field.strip() for field in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]


def why_too_old(capability: tuple[int, int]) -> str | None:
    """Why layers are not compiled on such a GPU unless that is set; None: they can be.

    Args:
        capability: compute capability of the GPU.
    """
    return "not tried on GPUs before Ampere" if capability < OLDEST_COMPILED else None


def why_not_compiled(capability: tuple[int, int]) -> str | None:
    """Why layers are not compiled on a GPU of this machine unless that is set; None: they can be.

    Triton compiles its launcher with a C compiler and Python's headers.

    Args:
        capability: compute capability of the GPU.
    """
    if reason := why_too_old(capability):
        return reason
    if "CC" not in os.environ and not (shutil.which("gcc") or shutil.which("clang")):
        return "there is no C compiler on this machine"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "the headers of Python are not on this machine"
    return None


def machine_findings(machine: Machine) -> Iterator[Finding]:
    """The findings about this machine, without Python and packages."""
    yield _system_finding(machine)
    yield _torch_finding(machine)
    for gpu in machine.gpus:
        yield _gpu_finding(gpu)
    memory = gib(machine.memory_bytes) if machine.memory_bytes is not None else "unknown"
    yield Finding("memory", "ok", f"{memory}, {machine.cpus} cores")
    for name, folder, free, setting in (
        ("disk for runs", machine.run_folder, machine.run_folder_free_bytes, "trainer.default_root_dir"),
        ("disk for models", machine.cache_folder, machine.cache_free_bytes, "HF_HOME"),
        ("disk for rows", machine.rows_folder, machine.rows_free_bytes, "data.cache_dir or HF_DATASETS_CACHE"),
    ):
        if reason := machine.not_writable.get(folder):
            fix = f"Set {setting} to a folder that can be written"
            yield Finding(name, "warning", f"{folder} cannot be written ({reason})", fix)
        else:
            yield Finding(name, "ok", f"{gib(free)} free at {folder}")
    if machine.shared_memory_bytes is not None:
        yield Finding("shared memory", "ok", f"{gib(machine.shared_memory_bytes)} at {SHARED_MEMORY}")


def _system_finding(machine: Machine) -> Finding:
    if machine.system.startswith("Windows"):
        return Finding("system", "missing", f"{machine.system} is not supported", "Use WSL 2, which is Linux")
    if machine.system.startswith("Darwin"):
        fix = "Use --trainer.accelerator cpu: the demo and everything but training 6B work"
        return Finding("system", "warning", f"{machine.system}: the Apple GPU (MPS) is not supported", fix)
    return Finding("system", "ok", machine.system)


def _torch_finding(machine: Machine) -> Finding:
    name, version = "torch and GPU", machine.torch_version
    if machine.cuda_available:
        driver = f", driver {machine.driver}" if machine.driver else ""
        return Finding(name, "ok", f"torch {version} with CUDA {machine.torch_cuda}{driver}")
    if machine.driver is None:
        built = f"with CUDA {machine.torch_cuda}" if machine.torch_cuda else "without CUDA"
        return Finding(name, "warning", f"torch {version} {built}, no NVIDIA driver: a CPU machine")
    if machine.torch_cuda is None:
        fix = "Install a torch with CUDA: https://pytorch.org/get-started/locally"
        found = f"torch {version} is a build without CUDA, though the machine has NVIDIA driver {machine.driver}"
        return Finding(name, "missing", found, fix)
    found = f"torch {version} with CUDA {machine.torch_cuda} cannot use the GPU with driver {machine.driver}"
    oldest = OLDEST_DRIVER.get(int(machine.torch_cuda.split(".")[0]))
    if oldest and int(machine.driver.split(".")[0]) < oldest:
        fix = f"Update the driver to {oldest} or newer, or install a torch for an older CUDA"
        return Finding(name, "missing", f"{found}, which is too old for this CUDA", fix)
    fix = 'Check CUDA_VISIBLE_DEVICES and the error of python -c "import torch; torch.zeros(1).cuda()"'
    return Finding(name, "missing", found, fix)


def _gpu(index: int) -> Gpu:
    properties, capability = torch.cuda.get_device_properties(index), torch.cuda.get_device_capability(index)
    free, total = torch.cuda.mem_get_info(index)
    return Gpu(properties.name, total, free, capability, _has_kernels(capability, torch.cuda.get_arch_list()))


def _has_kernels(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether a torch built for `sm_75`, `sm_80`, … has code for a GPU.

    A GPU runs `sm_` code of the same major version up to its own, and `compute_` code of any version up to its own.
    """
    numbers = [(name.split("_")[0], int("".join(c for c in name.split("_")[1] if c.isdigit()))) for name in built_for]
    own = capability[0] * 10 + capability[1]
    return any(number <= own and (kind == "compute" or number // 10 == capability[0]) for kind, number in numbers)


def _gpu_finding(gpu: Gpu) -> Finding:
    architecture = "sm_{}{}".format(*gpu.compute_capability)
    found = f"{gpu.name}, {architecture}, {gib(gpu.memory_bytes)}, {gib(gpu.free_bytes)} free"
    if not gpu.has_kernels:
        fix = "Install a torch that was built for it (an older CUDA for older GPUs)"
        return Finding("GPU", "missing", f"{found}; this torch was not built for it", fix)
    return Finding("GPU", "ok", found)
