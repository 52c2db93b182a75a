"""What the settings of a run come to on a machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jsonargparse import Namespace
from peft import LoraConfig

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.chatglm2.attention import choose_attention
from kyon_pl.doctor.base import Base, Target, choose_target, look_at_base
from kyon_pl.doctor.machine import Machine
from kyon_pl.doctor.memory import (
    FLOAT32_BYTES,
    MemoryEstimate,
    MemorySettings,
    Slots,
    memory_estimate,
    needed_bytes,
    trained_parameters,
)
from kyon_pl.doctor.report import Finding, finding_of
from kyon_pl.doctor.work import LONGEST_ROW, Schedule, Speed, Work, assume_work, estimate_time, look_at_work
from kyon_pl.errors import KyonError
from kyon_pl.lora import Checkpointing, frozen_dtype, reference_lora

# packs larger than this are not looked for, in steps of
LARGEST_PACK, PACK_STEP = 65_536, 512
STEP_CHECKPOINT, BEST_CHECKPOINT = "StepCheckpoint", "ModelCheckpoint"
CHECKPOINT_COUNTS = {STEP_CHECKPOINT: "keep", BEST_CHECKPOINT: "save_top_k"}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a base of known shape needs.

    Attributes:
        config: the shape.
        settings: what the memory depends on.
        memory: the peak on one device.
        checkpoints_bytes: what the run folder holds at most.
        speed: a guess at the time; None where it is not known how much there is to do, or on what.
    """

    config: ChatGLM2Config
    settings: MemorySettings
    memory: MemoryEstimate
    checkpoints_bytes: int
    speed: Speed | None

    @property
    def device_bytes(self) -> int:
        """What the device has to have."""
        return needed_bytes(self.memory.peak, self.settings.device_type)

    def largest_pack(self, shortest: int, available_bytes: int, *, checkpointing: Checkpointing) -> int:
        """The most tokens of a packed batch that fit, a multiple of `PACK_STEP`, or 0 where `shortest` do not."""
        share = self.settings.training.trained_tokens / self.settings.training.total
        for tokens in range(LARGEST_PACK, shortest - 1, -PACK_STEP):
            batch = Slots(rows=1, slots=tokens, trained_tokens=round(tokens * share))
            tried = replace(self.settings, checkpointing=checkpointing, packed=True, training=batch)
            peak = memory_estimate(self.config, tried).peak
            if needed_bytes(peak, self.settings.device_type) <= available_bytes:
                return tokens
        return 0

    def fewest_checkpointed(self, available_bytes: int) -> int | None:
        """The fewest layers that have to be checkpointed for this batch to fit; None where all of them are too few."""
        for layers in range(self.config.num_layers + 1):
            peak = memory_estimate(self.config, replace(self.settings, checkpointing=layers)).peak
            if needed_bytes(peak, self.settings.device_type) <= available_bytes:
                return layers
        return None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on a machine, as far as it can be foreseen.

    Attributes:
        base: the base.
        target: the devices.
        work: rows, steps and batches.
        longest_row: the most tokens of a row, which a packed batch has to hold.
        problems: what the run would refuse in base and rows.
        needs: None while nobody here knows the shape of the base.
    """

    base: Base
    target: Target
    work: Work
    longest_row: int
    problems: tuple[Finding, ...]
    needs: Needs | None


def make_plan(settings: Namespace, machine: Machine, gpu_gib: float | None) -> Plan:
    """Foresee a run.

    Args:
        settings: of fit.
        machine: where.
        gpu_gib: the memory of another machine's GPU to plan for, in GiB; None: for this machine.

    Raises:
        SettingError: a setting that no run could have.
    """
    model, precision, problems = settings.model, str(settings.trainer.precision or "32-true"), list[Finding]()
    try:
        base = look_at_base(model.base, model.revision, model.random_config)
    except KyonError as error:
        problems.append(finding_of("base", error))
        base = Base(model.base, None, None, None)
    target = choose_target(settings.trainer, precision, base.config, machine, gpu_gib)
    data, schedule = settings.data.as_dict(), _schedule(settings.trainer, target.devices)
    try:
        work = look_at_work(data, base.folder, schedule)
    except KyonError as error:
        problems.append(finding_of("rows", error))
        work = assume_work(data, schedule)
    return Plan(
        base=base,
        target=target,
        work=work,
        longest_row=data["max_tokens"] or LONGEST_ROW,
        problems=tuple(problems),
        needs=_needs(base.config, settings, precision, target, work) if base.config else None,
    )


def _needs(config: ChatGLM2Config, settings: Namespace, precision: str, target: Target, work: Work) -> Needs:
    lora, device = _lora(settings.model), torch.device(target.device_type)
    memory_settings = MemorySettings(
        precision=precision,
        lora=lora,
        checkpointing=settings.model.checkpointing,
        quantization=settings.model.quantization,
        compiled=settings.model.compile,
        attention=_attention(settings.model.attention, device, precision, here=target.here),
        packed=settings.data.batching == "packed",
        training=work.training,
        validation=None if settings.trainer.limit_val_batches == 0 else work.validation,
        device_type=target.device_type,
        sharded_over=target.devices if settings.model.shard_base else 1,
    )
    one_more = 1 + _kept_checkpoints(settings.trainer)  # the old ones go when the new one is whole
    return Needs(
        config=config,
        settings=memory_settings,
        memory=memory_estimate(config, memory_settings),
        checkpoints_bytes=one_more * checkpoint_bytes(config, lora),
        speed=estimate_time(config, memory_settings, work, device) if target.here else None,
    )


def checkpoint_bytes(config: ChatGLM2Config, lora: LoraConfig) -> int:
    """One checkpoint: weights and Adam's two averages in float32, and the weights again in the folder beside it."""
    return trained_parameters(config, lora) * FLOAT32_BYTES * (3 + 1)


def _schedule(trainer: Namespace, devices: int) -> Schedule:
    """How often the rows are gone through; Lightning's own default is 1,000 epochs."""
    steps = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
    epochs = 1000 if trainer.max_epochs is None and steps is None else trainer.max_epochs
    epochs = epochs if epochs and epochs > 0 else None
    return Schedule(epochs, steps, trainer.accumulate_grad_batches, devices, trainer.limit_train_batches)


def _lora(model: Namespace) -> LoraConfig:
    """What is trained: the settings, or those of an adapter to start from, where it is a folder."""
    if model.adapter and Path(model.adapter).is_dir():
        found = LoraConfig.from_pretrained(model.adapter)
        assert isinstance(found, LoraConfig)
        return found
    if model.lora is None:
        return reference_lora()
    chosen = model.lora.get("init_args", model.lora)
    return LoraConfig(
        r=chosen.r,
        lora_dropout=chosen.lora_dropout,
        target_modules=chosen.target_modules,
        use_dora=chosen.get("use_dora", False),
    )


def _attention(attention: str, device: torch.device, precision: str, *, here: bool) -> str:
    """The attention that will run; on a GPU that is not here, what a recent one would do."""
    dtype = frozen_dtype(precision)
    if here:
        return choose_attention(attention, device, dtype)[0]
    if attention == "auto":
        return "varlen" if dtype.itemsize < FLOAT32_BYTES else "sdpa"
    return attention


def _kept_checkpoints(trainer: Namespace) -> int:
    """How many checkpoints the run folder holds at the end; of a callback that keeps all, one is counted."""
    if trainer.enable_checkpointing is False:
        return 0
    kept, chosen = {STEP_CHECKPOINT: 1}, trainer.callbacks or []
    for callback in chosen if isinstance(chosen, list) else [chosen]:
        name, given = callback.class_path.rpartition(".")[2], callback.get("init_args") or {}
        if name in CHECKPOINT_COUNTS:
            kept[name] = max(1, int(given.get(CHECKPOINT_COUNTS[name], 1)))
    return sum(kept.values())
