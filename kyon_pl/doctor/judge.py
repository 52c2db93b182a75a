"""Whether a planned run can work on a machine, line by line."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jsonargparse import Namespace

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.doctor.base import Target, base_finding
from kyon_pl.doctor.check import check_device
from kyon_pl.doctor.machine import SHARED_MEMORY, Machine
from kyon_pl.doctor.plan import PACK_STEP, Needs, Plan
from kyon_pl.doctor.report import Finding, finding_of, gib
from kyon_pl.doctor.work import Work
from kyon_pl.errors import KyonError
from kyon_pl.lora import check_combination, frozen_dtype, quantizer, reference_lora
from kyon_pl.training.throughput import duration

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
    yield from plan.problems
    yield from _device(plan, machine, settings)
    yield from _formats(plan, settings)
    yield _work(plan.work)
    if plan.needs is not None:
        yield _memory(plan, plan.needs, machine)
        yield _disk(plan.needs.checkpoints_bytes, machine)
        yield _time(plan.needs, plan.target)
    if settings.data.workers > 0 and machine.shared_memory_bytes is not None:
        yield _shared_memory(settings.data.workers, plan.work.training.total, machine.shared_memory_bytes)


def _device(plan: Plan, machine: Machine, settings: Namespace) -> Iterator[Finding]:
    accelerator, precision = str(settings.trainer.accelerator), str(settings.trainer.precision or "32-true")
    target, mps = plan.target, machine.mps_available and not machine.cuda_available
    if target.device_type == "cuda" and target.here:
        yield _gpus(target.devices, machine, precision)
    elif target.device_type == "cuda" and target.available_bytes is not None:
        planned = f"planned for a GPU of {gib(target.available_bytes)} that is not looked for here"
        yield Finding("device", "ok", planned)
    elif accelerator == "mps" or (accelerator == "auto" and mps):
        found = "Lightning would choose Apple's GPU (MPS), which is not supported"
        yield Finding("device", "missing", found, "Add --trainer.accelerator cpu")
    elif accelerator in ("gpu", "cuda"):
        found = f"trainer.accelerator is {accelerator}, and torch can use no GPU here"
        yield Finding("device", "missing", found, "See 'torch and GPU' above, or plan for another: --gpu_gib 16")
    else:
        yield from _cpu(plan.base.config, precision)


def _formats(plan: Plan, settings: Namespace) -> Iterator[Finding]:
    """What fit refuses of the frozen weights' format; on a GPU that is not here, as far as it can be known."""
    model, precision = settings.model, str(settings.trainer.precision or "32-true")
    lora = plan.needs.settings.lora if plan.needs else reference_lora()
    try:
        check_combination(model.quantization, lora, sharded=model.shard_base, compiled=model.compile)
        if plan.target.here:
            quantizer(model.quantization, frozen_dtype(precision), torch.device(plan.target.device_type))
    except KyonError as error:
        yield finding_of("weights", error)


def _cpu(config: ChatGLM2Config | None, precision: str) -> Iterator[Finding]:
    if config is None:
        return
    try:
        check_device(config, precision, "cpu")
    except KyonError as error:
        yield finding_of("device", error)
    else:
        yield Finding("device", "ok", f"the CPU, in {precision}")


def _gpus(devices: int, machine: Machine, precision: str) -> Finding:
    gpus, has_bf16 = len(machine.gpus), machine.gpus[0].compute_capability >= BF16_CAPABILITY
    name = f"{devices} × {machine.gpus[0].name}, in {precision}"
    if devices > gpus:
        fix = f"Fine where other nodes have the rest; else --trainer.devices {gpus}"
        return Finding("device", "warning", f"{name}: {gpus} of them here", fix)
    if precision == "16-mixed" and has_bf16:
        return Finding("device", "ok", name, "It can do --trainer.precision bf16-mixed, which needs no loss scaling")
    if precision == "bf16-mixed" and not has_bf16:
        return Finding("device", "warning", f"{name}, which it is slow in", "Use --trainer.precision 16-mixed")
    return Finding("device", "ok", name)


def _work(work: Work) -> Finding:
    batch, told = work.training, COUNTED[work.counted]
    shape = f"{batch.slots:,} tokens" if batch.rows == 1 else f"{batch.rows} rows of up to {batch.slots:,} tokens"
    if work.rows is None:
        return Finding("work", "ok", f"batches of {shape}; rows and steps {told}")
    steps = "no limit of steps" if work.steps is None else f"{work.steps:,} optimizer steps"
    return Finding("work", "ok", f"{work.rows:,} rows, {steps}, batches of {shape}; {told}")


def _memory(plan: Plan, needs: Needs, machine: Machine) -> Finding:
    on_gpu, available, needed = plan.target.device_type == "cuda", plan.target.available_bytes, needs.device_bytes
    name = "GPU memory" if on_gpu else "memory needed"
    found = f"{gib(needed)} at the peak{', CUDA itself included' if on_gpu else ''}"
    if available is None:
        fix = "--gpu_gib 16 plans for one of 16 GiB" if on_gpu else ""
        return Finding(name, "warning", f"{found}; nothing here to compare with", fix)
    found += f", of {gib(available)}"
    if needed > available:
        return Finding(name, "missing", found, lighter(needs, available))
    if needed > available * TIGHT:
        return Finding(name, "warning", f"{found}: tight", lighter(needs, available))
    if plan.target.here and any(gpu.free_bytes < needed for gpu in machine.gpus[: plan.target.devices]):
        fix = "nvidia-smi names the processes that hold the rest"
        return Finding(name, "warning", f"{found}, but less of it is free now", fix)
    return Finding(name, "ok", found)


def lighter(needs: Needs, available_bytes: int) -> str:
    """What to set for less memory, in words."""
    memory, batch = needs.memory, needs.settings.training
    most = needs.largest_pack(PACK_STEP, available_bytes, checkpointing="full")
    if memory.resident + memory.validation > memory.training and needs.settings.validation:
        rows = needs.settings.validation.rows
        if rows > 1 and (most or memory.training < available_bytes):
            return f"Validation needs the most: lower data.validation_rows_per_batch from {rows} to {max(1, rows // 4)}"
    layers = needs.fewest_checkpointed(available_bytes)
    if layers is not None:  # more than are checkpointed now, or this would not be asked
        return f"Set model.checkpointing to {layers}: a third more work, a fraction of the memory"
    if not most:
        smaller = "" if needs.settings.quantization == "nf4" else "configs/overlay/qlora.yaml, "
        return f"Use {smaller}a half-precision setting (--trainer.precision 16-mixed), or a larger GPU"
    if needs.settings.packed:
        return f"Lower data.tokens_per_batch (and data.max_tokens with it) to {min(most, batch.slots):,} or less"
    rows = most // batch.slots
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


def _time(needs: Needs, target: Target) -> Finding:
    if needs.speed is None:
        why = "how much there is to do is not known" if target.here else "the device is not here to be timed"
        return Finding("time", "ok", f"not estimated: {why}")
    each = f" on each of {target.devices} devices" if target.devices > 1 else ""
    rough = f"about {duration(needs.speed.seconds)}{each}, validation aside: a rough estimate"
    return Finding("time", "ok", f"{rough} ({needs.speed.source})")
