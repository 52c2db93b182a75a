"""The checks of machine and settings: whether a planned run can work, one finding per check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from jsonargparse import Namespace

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.doctor.choice import BF16_CAPABILITY
from kyon_pl.doctor.device import USABLE_SHARE, Target, check_device
from kyon_pl.doctor.machine import SHARED_MEMORY, Machine, free_bytes, inspect_machine, machine_findings
from kyon_pl.doctor.plan import PACK_STEP, Base, Needs, Plan, make_plan
from kyon_pl.doctor.report import MEMORY_PARTS, Finding, Report, error_finding, gib
from kyon_pl.doctor.speed import CARDS
from kyon_pl.doctor.work import Work
from kyon_pl.errors import KyonError
from kyon_pl.hub.modelscope import PREFIX, is_modelscope, modelscope_cache
from kyon_pl.lora import check_combination, frozen_dtype, quantizer, reference_lora
from kyon_pl.training.throughput import duration

# torch prefetches two batches per worker, each of four int64 tensors
PREFETCHED_BATCHES, SLOT_BYTES = 2, 4 * 8

WORK_SOURCES = {
    "rows": "counted",
    "published": "estimated from the published rows, which are not on this machine yet",
    "settings": "unknown until the rows are on this machine",
}


def examine_machine(settings: Namespace) -> tuple[Machine, list[Finding], dict[str, Any]]:
    """Inspect this machine.

    Args:
        settings: the settings of fit, which name the folders for runs and for encoded rows.

    Returns:
        The machine, the findings about it, and its numbers for the report.
    """
    machine = inspect_machine(Path(settings.trainer.default_root_dir or "."), settings.data.cache_dir)
    return machine, list(machine_findings(machine)), asdict(machine)


def examine_config(report: Report, settings: Namespace, machine: Machine) -> None:
    """Add what a run with these settings needs to the report. Errors of the settings become findings.

    Args:
        report: the report to add to.
        settings: the settings of fit.
        machine: this machine.
    """
    try:
        plan = make_plan(settings, machine, settings.gpu_gib, CARDS[settings.gpu] if settings.gpu else None)
    except KyonError as error:
        report.config.append(error_finding("config", error))
        return
    report.config.extend(config_findings(plan, machine, settings))
    report.memory = plan.needs.memory if plan.needs else None
    report.needs = _numbers(plan)
    report.advice = _advice(plan)


def _numbers(plan: Plan) -> dict[str, Any]:
    base, target, needs = plan.base, plan.target, plan.needs
    time = needs.time if needs else None
    return {
        "base": base.name,
        "base_folder": str(base.folder) if base.folder else None,
        "download_bytes": base.download_bytes,
        "device": target.device_type,
        "device_is_here": target.is_local,
        "devices": target.devices,
        "available_bytes": target.available_bytes,
        "work": asdict(plan.work),
        "parameters": needs.config.parameter_count if needs else None,
        "memory": {f"{name}_bytes": getattr(needs.memory, name) for name in MEMORY_PARTS} if needs else None,
        "peak_bytes": needs.memory.peak if needs else None,
        "needed_bytes": needs.device_bytes if needs else None,
        "checkpoints_bytes": needs.checkpoints_bytes if needs else None,
        "training_seconds": time.seconds if time else None,
        "training_seconds_source": time.source if time else None,
    }


def _advice(plan: Plan) -> dict[str, int | None]:
    available, needs, shortest = plan.target.available_bytes, plan.needs, plan.longest_row
    if plan.target.device_type != "cuda" or available is None or needs is None:
        return {}
    return {
        "tokens_per_batch_with_checkpointing": needs.largest_pack(shortest, available, checkpointing="full"),
        "tokens_per_batch_without_checkpointing": needs.largest_pack(shortest, available, checkpointing="none"),
        "checkpointed_layers": needs.fewest_checkpointed(available),
    }


def config_findings(plan: Plan, machine: Machine, settings: Namespace) -> Iterator[Finding]:
    """The findings about a run.

    Args:
        plan: the planned run.
        machine: this machine.
        settings: the settings of fit.
    """
    if not any(problem.name == "base" for problem in plan.problems):
        yield base_finding(plan.base, machine)
    yield from plan.problems
    yield from _device_findings(plan, machine, settings)
    yield from _quantization_findings(plan, settings)
    yield from (Finding("auto", "ok", line) for line in plan.choice)
    yield _work_finding(plan.work)
    if plan.needs is not None:
        yield _memory_finding(plan, plan.needs, machine)
        yield _disk_finding(plan.needs.checkpoints_bytes, machine)
        yield _time_finding(plan.needs, plan.target)
    if settings.data.workers > 0 and machine.shared_memory_bytes is not None:
        yield _shared_memory_finding(settings.data.workers, plan.work.training.total, machine.shared_memory_bytes)


def base_finding(base: Base, machine: Machine) -> Finding:
    """Whether the base is on this machine or can be downloaded."""
    name = f"{base.name}, {_parameters_text(base.config)}" if base.config else base.name
    if base.download_bytes == 0:
        return Finding("base", "ok", f"{name}: {base.folder or 'random weights'}")
    variable = "HF_HOME"
    if is_modelscope(base.name):
        cache, variable = modelscope_cache(), "MODELSCOPE_CACHE"
        machine = replace(machine, cache_folder=str(cache), cache_free_bytes=free_bytes(cache))
    size = "of unknown size" if base.download_bytes is None else f"{base.download_bytes / 1e9:.1f} GB to download"
    found = f"{name}: {size}, into {machine.cache_folder}"
    if constants.HF_HUB_OFFLINE:
        fix = "Unset HF_HUB_OFFLINE and download it once, or set model.base to the folder of a copy"
        return Finding("base", "missing", f"{found}, but HF_HUB_OFFLINE forbids downloads", fix)
    if reason := machine.not_writable.get(machine.cache_folder):
        fix = f"Set {variable} to another folder"
        return Finding("base", "missing", f"{found}, which cannot be written ({reason})", fix)
    if (base.download_bytes or 0) > machine.cache_free_bytes:
        fix = f"Free disk space there, or set {variable} to a larger disk"
        return Finding("base", "missing", f"{found}, but only {machine.cache_free_bytes / 1e9:.1f} GB are free", fix)
    if base.config is None:
        repo, download = base.name.removeprefix(PREFIX), "ms" if is_modelscope(base.name) else "hf"
        fix = f"Download its configuration, one kilobyte: {download} download {repo} config.json"
        return Finding("base", "warning", found, fix)
    return Finding("base", "ok", f"{found}, at the first run")


def _parameters_text(config: ChatGLM2Config) -> str:
    count = config.parameter_count
    return f"{count / 1e9:.2f} billion parameters" if count >= 1e9 else f"{count / 1e6:.1f} million parameters"


def _device_findings(plan: Plan, machine: Machine, settings: Namespace) -> Iterator[Finding]:
    accelerator, precision = str(settings.trainer.accelerator), str(settings.trainer.precision or "32-true")
    target, mps = plan.target, machine.mps_available and not machine.cuda_available
    if target.device_type == "cuda" and target.is_local:
        yield _gpus_finding(target.devices, machine, precision)
    elif target.device_type == "cuda" and target.available_bytes is not None:
        yield Finding("device", "ok", f"planned for a GPU of {gib(target.available_bytes)} in another machine")
    elif accelerator == "mps" or (accelerator == "auto" and mps):
        found = "Lightning would choose the Apple GPU (MPS), which is not supported"
        yield Finding("device", "missing", found, "Add --trainer.accelerator cpu")
    elif accelerator in ("gpu", "cuda"):
        found = f"trainer.accelerator is {accelerator}, but torch can use no GPU here"
        fix = "See 'torch and GPU' above, or plan for another machine: --gpu_gib 16"
        yield Finding("device", "missing", found, fix)
    elif plan.base.config is not None:
        yield _cpu_finding(plan.base.config, precision)


def _cpu_finding(config: ChatGLM2Config, precision: str) -> Finding:
    try:
        check_device(config, precision, "cpu")
    except KyonError as error:
        return error_finding("device", error)
    return Finding("device", "ok", f"the CPU, in {precision}")


def _gpus_finding(devices: int, machine: Machine, precision: str) -> Finding:
    gpus, has_bf16 = len(machine.gpus), machine.gpus[0].compute_capability >= BF16_CAPABILITY
    found = f"{devices} × {machine.gpus[0].name}, in {precision}"
    if devices > gpus:
        fix = f"Add --trainer.devices {gpus}, unless other nodes have the rest"
        return Finding("device", "warning", f"{found}: only {gpus} of them here", fix)
    if precision == "16-mixed" and has_bf16:
        return Finding("device", "ok", found, "It supports --trainer.precision bf16-mixed, which needs no loss scaling")
    if precision == "bf16-mixed" and not has_bf16:
        return Finding("device", "warning", f"{found}: bfloat16 is slow on it", "Use --trainer.precision 16-mixed")
    return Finding("device", "ok", found)


def _quantization_findings(plan: Plan, settings: Namespace) -> Iterator[Finding]:
    """What fit refuses about `model.quantization`; the checks of the GPU itself need one on this machine."""
    model, precision = settings.model, str(settings.trainer.precision or "32-true")
    lora = plan.needs.settings.lora if plan.needs else reference_lora()
    try:
        check_combination(model.quantization, lora, sharded=model.shard_base, compiled=model.compile)
        if plan.target.is_local:
            quantizer(model.quantization, frozen_dtype(precision), torch.device(plan.target.device_type))
    except KyonError as error:
        yield error_finding("weights", error)


def _work_finding(work: Work) -> Finding:
    batch, source = work.training, WORK_SOURCES[work.counted]
    shape = f"{batch.slots:,} tokens" if batch.rows == 1 else f"{batch.rows} rows of up to {batch.slots:,} tokens"
    if work.rows is None:
        return Finding("work", "ok", f"batches of {shape}; rows and steps {source}")
    steps = "no limit of steps" if work.steps is None else f"{work.steps:,} optimizer steps"
    return Finding("work", "ok", f"{work.rows:,} rows, {steps}, batches of {shape}; {source}")


def _memory_finding(plan: Plan, needs: Needs, machine: Machine) -> Finding:
    on_gpu, available, needed = plan.target.device_type == "cuda", plan.target.available_bytes, needs.device_bytes
    name = "GPU memory" if on_gpu else "memory needed"
    found = f"{gib(needed)} at the peak{', with the CUDA context' if on_gpu else ''}"
    if available is None:
        fix = "Plan for a GPU of 16 GiB with --gpu_gib 16" if on_gpu else ""
        return Finding(name, "warning", f"{found}; the memory of the device is unknown", fix)
    found += f", of {gib(available)}"
    if needed > available:
        return Finding(name, "missing", found, memory_advice(needs, available))
    if needed > available * USABLE_SHARE:
        return Finding(name, "warning", f"{found}: tight", memory_advice(needs, available))
    if plan.target.is_local and any(gpu.free_bytes < needed for gpu in machine.gpus[: plan.target.devices]):
        fix = "nvidia-smi lists the processes that use the GPU"
        return Finding(name, "warning", f"{found}, but other processes use some of it now", fix)
    return Finding(name, "ok", found)


def memory_advice(needs: Needs, available_bytes: int) -> str:
    """The setting to change so that the run needs less memory."""
    memory, batch = needs.memory, needs.settings.training
    most = needs.largest_pack(PACK_STEP, available_bytes, checkpointing="full")
    if memory.resident + memory.validation > memory.training and needs.settings.validation:
        rows = needs.settings.validation.rows
        if rows > 1 and (most or memory.training < available_bytes):
            return f"Validation needs the most: lower data.validation_rows_per_batch from {rows} to {max(1, rows // 4)}"
    layers = needs.fewest_checkpointed(available_bytes)
    if layers is not None:  # more layers than are checkpointed now, or the batch would fit
        return f"Set model.checkpointing to {layers}: a third more work, a fraction of the memory"
    if not most:
        if needs.settings.quantization != "nf4" and (quantized := needs.quantized_bytes()) <= available_bytes:
            return f"Add --config configs/overlay/qlora.yaml: frozen layers in 4 bits need {gib(quantized)}"
        return "Use a half-precision setting (--trainer.precision 16-mixed), a larger GPU, or configs/overlay/fsdp.yaml"
    if needs.settings.packed:
        return f"Lower data.tokens_per_batch (and data.max_tokens with it) to {min(most, batch.slots):,} or less"
    rows = most // batch.slots
    return f"Lower data.rows_per_batch to {rows} or less" if rows else f"Lower data.max_tokens to {most:,} or less"


def _disk_finding(needed: int, machine: Machine) -> Finding:
    found = f"{gib(needed)} for checkpoints, of {gib(machine.run_folder_free_bytes)} free"
    if needed > machine.run_folder_free_bytes:
        fix = "Free disk space, or write to another disk: --trainer.default_root_dir FOLDER"
        return Finding("disk", "missing", found, fix)
    return Finding("disk", "ok", found)


def _shared_memory_finding(workers: int, slots: int, available: int) -> Finding:
    needed = workers * PREFETCHED_BATCHES * slots * SLOT_BYTES
    found = f"{gib(needed)} for {workers} loader workers, of {gib(available)} at {SHARED_MEMORY}"
    if needed > available:
        fix = "Start the container with --shm-size 1g (or --ipc host), or add --data.workers 0"
        return Finding("shared memory", "missing", found, fix)
    return Finding("shared memory", "ok", found)


def _time_finding(needs: Needs, target: Target) -> Finding:
    if needs.time is None:
        unknown = target.is_local or target.card is not None
        reason = (
            "the amount of work is unknown" if unknown else "the device is not in this machine (name it with --gpu)"
        )
        return Finding("time", "ok", f"not estimated: {reason}")
    each = f" on each of {target.devices} devices" if target.devices > 1 else ""
    estimate = f"about {duration(needs.time.seconds)}{each} without validation, a rough estimate"
    return Finding("time", "ok", f"{estimate} ({needs.time.source})")
