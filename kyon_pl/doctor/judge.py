"""Whether a planned run can work on a machine, line by line."""

from __future__ import annotations

from collections.abc import Iterator

from jsonargparse import Namespace

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.doctor.base import base_finding
from kyon_pl.doctor.check import check_device
from kyon_pl.doctor.findings import Finding, finding_of, gib
from kyon_pl.doctor.machine import SHARED_MEMORY, Machine
from kyon_pl.doctor.plan import PACK_STEP, Plan
from kyon_pl.doctor.work import Work
from kyon_pl.errors import KyonError
from kyon_pl.training.callbacks.run_estimate import duration

# the allocator left 3 % unused where it was short of memory (13.89 GiB reserved for 13.50 in use)
TIGHT = 0.97
BF16_CAPABILITY = (8, 0)
# torch reads ahead by two batches a worker, each of four int64 tensors
AHEAD, SLOT_BYTES = 2, 4 * 8

COUNTED = {
    "rows": "counted",
    "published": "estimated from the published rows, which are not here yet",
    "settings": "unknown until the rows are here",
}


def judge(plan: Plan, machine: Machine, settings: Namespace) -> Iterator[Finding]:
    """The lines about a config.

    Args:
        plan: what it comes to.
        machine: where it is to run.
        settings: of fit.
    """
    if not any(problem.name == "base" for problem in plan.problems):
        yield base_finding(plan.base, machine)
    yield from _device(plan, machine, settings)
    yield _work(plan.work)
    if plan.memory is not None:
        yield _memory(plan, machine)
    if plan.checkpoints_bytes is not None:
        yield _disk(plan.checkpoints_bytes, machine)
    if settings.data.workers > 0 and machine.shared_memory_bytes is not None:
        yield _shared_memory(settings.data.workers, plan.work.training.total, machine.shared_memory_bytes)
    if plan.speed is not None:
        each = f" on each of {plan.devices} devices" if plan.devices > 1 else ""
        rough = f"about {duration(plan.speed.seconds)}{each}, validation aside: a rough estimate"
        yield Finding("time", "ok", f"{rough} ({plan.speed.source})")
    elif not plan.here and plan.work.slots is not None:
        yield Finding("time", "ok", "not estimated: the device is not here to be timed")


def _device(plan: Plan, machine: Machine, settings: Namespace) -> Iterator[Finding]:
    accelerator, precision = str(settings.trainer.accelerator), str(settings.trainer.precision or "32-true")
    if accelerator == "mps" or (accelerator == "auto" and machine.mps_available and not machine.cuda_available):
        found = "Lightning would choose Apple's GPU (MPS), which is not supported"
        yield Finding("device", "missing", found, "Add --trainer.accelerator cpu")
    elif plan.device_type == "cuda" and plan.here:
        yield from _gpus(plan, machine, precision)
    elif plan.device_type == "cuda" and plan.available_bytes is not None:
        yield Finding("device", "ok", f"planned for a GPU of {gib(plan.available_bytes)} that is not looked for here")
    elif accelerator in ("gpu", "cuda"):
        found = f"trainer.accelerator is {accelerator}, and torch can use no GPU here"
        yield Finding("device", "missing", found, "See 'torch and GPU' above, or plan for another: --gpu_gib 16")
    else:
        yield from _cpu(plan.base.config, precision)


def _cpu(config: ChatGLM2Config | None, precision: str) -> Iterator[Finding]:
    if config is None:
        return
    try:
        check_device(config, precision, "cpu")
    except KyonError as error:
        yield finding_of("device", error)
    else:
        yield Finding("device", "ok", f"the CPU, in {precision}")


def _gpus(plan: Plan, machine: Machine, precision: str) -> Iterator[Finding]:
    gpus = len(machine.gpus)
    if plan.devices > gpus:  # on several nodes: as many there
        found = f"{plan.devices} GPUs are asked for in all, and {gpus} are here"
        yield Finding("device", "warning", found, f"Fine on several nodes; else --trainer.devices {gpus}")
        return
    has_bf16 = machine.gpus[0].compute_capability >= BF16_CAPABILITY
    name = f"{plan.devices} × {machine.gpus[0].name}, in {precision}"
    if precision == "16-mixed" and has_bf16:
        fix = "It can do --trainer.precision bf16-mixed, which needs no loss scaling"
        yield Finding("device", "ok", name, fix)
    elif precision == "bf16-mixed" and not has_bf16:
        yield Finding("device", "warning", f"{name}, which it does not compute in", "Use --trainer.precision 16-mixed")
    else:
        yield Finding("device", "ok", name)


def _work(work: Work) -> Finding:
    batch, told = work.training, COUNTED[work.counted]
    shape = f"{batch.slots:,} tokens" if batch.rows == 1 else f"{batch.rows} rows of up to {batch.slots:,} tokens"
    if work.rows is None:
        return Finding("work", "ok", f"batches of {shape}; rows and steps {told}")
    steps = "no limit of steps" if work.steps is None else f"{work.steps:,} optimizer steps"
    return Finding("work", "ok", f"{work.rows:,} rows, {steps}, batches of {shape}; {told}")


def _memory(plan: Plan, machine: Machine) -> Finding:
    assert plan.memory is not None
    assert plan.needed_bytes is not None
    name = "GPU memory" if plan.device_type == "cuda" else "memory needed"
    context = ", CUDA's own included" if plan.device_type == "cuda" else ""
    found = f"{gib(plan.needed_bytes)} at the peak{context}"
    if plan.available_bytes is None:
        return Finding(name, "warning", f"{found}; no GPU here to compare with", "--gpu_gib 16 plans for one of 16 GiB")
    found += f", of {gib(plan.available_bytes)}"
    if plan.needed_bytes > plan.available_bytes:
        return Finding(name, "missing", found, lighter(plan))
    if plan.needed_bytes > plan.available_bytes * TIGHT:
        return Finding(name, "warning", f"{found}: tight", lighter(plan))
    if plan.here and any(gpu.free_bytes < plan.needed_bytes for gpu in machine.gpus):
        fix = "nvidia-smi names the processes that hold the rest"
        return Finding(name, "warning", f"{found}, but less of it is free now", fix)
    return Finding(name, "ok", found)


def lighter(plan: Plan) -> str:
    """What to set for less memory, in words."""
    assert plan.memory is not None
    assert plan.settings is not None
    if plan.memory.resident + plan.memory.validation > plan.memory.training and plan.settings.validation:
        rows = plan.settings.validation.rows
        return f"Validation needs the most: lower data.validation_rows_per_batch from {rows} to {max(1, rows // 4)}"
    if not plan.settings.gradient_checkpointing:
        return "Set model.gradient_checkpointing to true: a third more work, a fraction of the memory"
    most = plan.largest_pack(PACK_STEP, gradient_checkpointing=True)
    if not most:
        return "Use a half-precision setting (--trainer.precision 16-mixed), a larger GPU, or a smaller base"
    if plan.settings.packed:
        return f"Lower data.tokens_per_batch (and data.max_tokens with it) to {most:,} or less"
    rows = most // plan.settings.training.slots
    return f"Lower data.rows_per_batch to {rows} or less" if rows else f"Lower data.max_tokens to {most:,} or less"


def _disk(needed: int, machine: Machine) -> Finding:
    found = f"{gib(needed)} for checkpoints, of {gib(machine.run_folder_free_bytes)} free"
    if needed > machine.run_folder_free_bytes:
        return Finding("disk", "missing", found, "Make room, or write elsewhere: --trainer.default_root_dir FOLDER")
    return Finding("disk", "ok", found)


def _shared_memory(workers: int, slots: int, there: int) -> Finding:
    needed = workers * AHEAD * slots * SLOT_BYTES
    found = f"{gib(needed)} for {workers} loader workers, of {gib(there)} at {SHARED_MEMORY}"
    if needed > there:
        fix = "Start the container with --shm-size 1g (or --ipc host), or add --data.workers 0"
        return Finding("shared memory", "missing", found, fix)
    return Finding("shared memory", "ok", found)
