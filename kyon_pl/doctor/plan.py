"""What the settings of a run come to on a machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from peft import LoraConfig

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.chatglm2.attention import choose_attention
from kyon_pl.doctor.base import Base, look_at_base
from kyon_pl.doctor.check import CPU_PARAMETERS
from kyon_pl.doctor.findings import Finding, finding_of
from kyon_pl.doctor.machine import Machine
from kyon_pl.doctor.memory import (
    FLOAT32_BYTES,
    GIB,
    MemoryEstimate,
    MemorySettings,
    Slots,
    memory_estimate,
    needed_bytes,
    trained_parameters,
)
from kyon_pl.doctor.speed import Speed, estimate_time
from kyon_pl.doctor.work import LONGEST_ROW, Schedule, Work, assume_work, look_at_work
from kyon_pl.errors import KyonError, SettingError
from kyon_pl.lora import frozen_dtype, reference_lora

# packs larger than this are not looked for, in steps of
LARGEST_PACK, PACK_STEP = 65_536, 512
STEP_CHECKPOINT, BEST_CHECKPOINT = "StepCheckpoint", "ModelCheckpoint"


@dataclass(frozen=True)
class Plan:
    """A run on a machine, as far as it can be foreseen.

    Attributes:
        base: the base.
        device_type: `cuda` or `cpu`: what the run is meant for.
        here: whether there is such a device.
        devices: how many the run takes, over all nodes.
        work: rows, steps and batches.
        longest_row: the most tokens of a row, which a packed batch has to hold.
        problems: what the run would refuse in base and rows.
        settings: what the memory depends on; None while the shape of the base is unknown.
        memory: the peak on one device; None likewise.
        available_bytes: memory of the device, or of the one that is planned for; None: there is none.
        checkpoints_bytes: what the run folder will hold; None likewise.
        speed: a guess at the time; None where it is not known how much there is to do, or on what.
    """

    base: Base
    device_type: str
    here: bool
    devices: int
    work: Work
    longest_row: int
    problems: tuple[Finding, ...]
    settings: MemorySettings | None
    memory: MemoryEstimate | None
    available_bytes: int | None
    checkpoints_bytes: int | None
    speed: Speed | None

    @property
    def needed_bytes(self) -> int | None:
        """What the device has to have."""
        return needed_bytes(self.memory.peak, self.device_type) if self.memory else None

    def largest_pack(self, shortest: int, *, gradient_checkpointing: bool) -> int:
        """The most tokens of a packed batch that fit, a multiple of `PACK_STEP`, or 0 where `shortest` do not."""
        if self.settings is None or self.base.config is None or self.available_bytes is None:
            return 0
        share = self.settings.training.trained_tokens / self.settings.training.total
        for tokens in range(LARGEST_PACK, shortest - 1, -PACK_STEP):
            batch = Slots(rows=1, slots=tokens, trained_tokens=round(tokens * share))
            tried = replace(self.settings, gradient_checkpointing=gradient_checkpointing, packed=True, training=batch)
            peak = memory_estimate(self.base.config, tried).peak
            if needed_bytes(peak, self.device_type) <= self.available_bytes:
                return tokens
        return 0


def make_plan(settings: Namespace, machine: Machine, gpu_gib: float | None) -> Plan:
    """Foresee a run.

    Args:
        settings: of fit.
        machine: where.
        gpu_gib: the memory of another machine's GPU to plan for, in GiB; None: for this machine.

    Raises:
        SettingError: a setting that no run could have.
    """
    trainer, model, problems = settings.trainer, settings.model, list[Finding]()
    try:
        base = look_at_base(model.base, model.revision, model.random_config)
    except KyonError as error:
        problems.append(finding_of("base", error))
        base = Base(model.base, None, None, None)
    precision = str(trainer.precision or "32-true")
    device_type = device_of(str(trainer.accelerator), precision, base.config, machine, planned=gpu_gib is not None)
    here = gpu_gib is None and (device_type == "cpu" or machine.cuda_available)
    devices = count_devices(trainer.devices, len(machine.gpus) if here and device_type == "cuda" else 1)
    devices *= int(trainer.num_nodes or 1)
    data, schedule = settings.data.as_dict(), schedule_of(trainer, devices)
    try:
        work = look_at_work(data, base.folder, schedule)
    except KyonError as error:
        problems.append(finding_of("rows", error))
        work = assume_work(data, schedule)
    longest = data["max_tokens"] or LONGEST_ROW
    device = torch.device(device_type)
    available = int(gpu_gib * GIB) if gpu_gib is not None else None
    if here:
        available = machine.memory_bytes if device_type == "cpu" else min(gpu.memory_bytes for gpu in machine.gpus)
    if base.config is None:
        return Plan(base, device_type, here, devices, work, longest, tuple(problems), None, None, available, None, None)
    memory_settings = MemorySettings(
        precision=precision,
        lora=lora_of(model),
        gradient_checkpointing=model.gradient_checkpointing,
        attention=attention_of(model.attention, device, precision, here=here),
        packed=settings.data.batching == "packed",
        training=work.training,
        validation=work.validation,
        device_type=device_type,
    )
    memory = memory_estimate(base.config, memory_settings)
    speed = estimate_time(base.config, memory_settings, work, device) if here else None
    kept = checkpoint_bytes(base.config, memory_settings.lora) * (kept_checkpoints(trainer) + 1)
    return Plan(
        base,
        device_type,
        here,
        devices,
        work,
        longest,
        tuple(problems),
        memory_settings,
        memory,
        available,
        kept,
        speed,
    )


def device_of(
    accelerator: str, precision: str, config: ChatGLM2Config | None, machine: Machine, *, planned: bool
) -> str:
    """What the run is meant for: a GPU, unless the CPU is asked for or is all there is and is enough."""
    if accelerator == "cpu":
        return "cpu"
    if planned or machine.cuda_available or accelerator in ("gpu", "cuda"):
        return "cuda"
    large = config is not None and config.parameter_count > CPU_PARAMETERS
    return "cuda" if large or precision == "16-mixed" else "cpu"


def count_devices(devices: Any, there: int) -> int:
    """How many devices `trainer.devices` takes of those that are there.

    Raises:
        SettingError: it is no number.
    """
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


def schedule_of(trainer: Namespace, devices: int) -> Schedule:
    """How often the rows are gone through; Lightning's own default is 1,000 epochs."""
    epochs, steps = trainer.max_epochs, trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
    if epochs is None and steps is None:
        epochs = 1000
    limited = trainer.limit_train_batches
    return Schedule(epochs if epochs and epochs > 0 else None, steps, trainer.accumulate_grad_batches, devices, limited)


def lora_of(model: Namespace) -> LoraConfig:
    """What is trained: the settings, or those of an adapter to start from, where it is a folder."""
    if model.adapter and Path(model.adapter).is_dir():
        found = LoraConfig.from_pretrained(model.adapter)
        assert isinstance(found, LoraConfig)
        return found
    if model.lora is None:
        return reference_lora()
    chosen = model.lora.get("init_args", model.lora)
    return LoraConfig(r=chosen.r, lora_dropout=chosen.lora_dropout, target_modules=chosen.target_modules)


def attention_of(attention: str, device: torch.device, precision: str, *, here: bool) -> str:
    """The attention that will run; on a GPU that is not here, what a recent one would do.

    Raises:
        SettingError: `varlen` was asked for by name and cannot work here.
    """
    dtype = frozen_dtype(precision)
    if here:
        return choose_attention(attention, device, dtype)[0]
    if attention == "auto":
        return "varlen" if dtype.itemsize < FLOAT32_BYTES else "sdpa"
    return attention


def kept_checkpoints(trainer: Namespace) -> int:
    """How many checkpoints the run folder holds at the end; of a callback that keeps all, one is counted."""
    if trainer.enable_checkpointing is False:
        return 0
    kept, chosen = {STEP_CHECKPOINT: 1}, trainer.callbacks or []
    for callback in chosen if isinstance(chosen, list) else [chosen]:
        name, given = callback.class_path.rpartition(".")[2], callback.get("init_args") or {}
        key = {STEP_CHECKPOINT: "keep", BEST_CHECKPOINT: "save_top_k"}.get(name)
        if key:
            kept[name] = max(1, int(given.get(key, 1)))
    return sum(kept.values())


def checkpoint_bytes(config: ChatGLM2Config, lora: LoraConfig) -> int:
    """One checkpoint: weights and Adam's two averages in float32, and the weights again in the folder beside it."""
    return trained_parameters(config, lora) * FLOAT32_BYTES * (3 + 1)
