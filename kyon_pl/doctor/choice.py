"""Values for the settings that are `auto`: the fastest way to make the optimizer steps that fits a machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jsonargparse import Namespace

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.data.batches.plan import PACKED
from kyon_pl.data.reading.files import local_files
from kyon_pl.doctor.cuts import CHECKPOINTING, COMPILE, Cut, auto_settings, step_cuts
from kyon_pl.doctor.device import USABLE_SHARE, Target
from kyon_pl.doctor.memory import MemorySettings, memory_estimate, needed_bytes
from kyon_pl.doctor.report import gib
from kyon_pl.doctor.run_settings import memory_settings
from kyon_pl.doctor.speed import COMPILE_S, FLOAT16_SHARE, SpeedSettings, speed_source, tokens_per_s
from kyon_pl.doctor.work import (
    LONGEST_ROW,
    PUBLISHED_ROW_TOKENS,
    PUBLISHED_ROWS,
    PUBLISHED_SOURCE,
    assumed_shape,
    assumed_validation,
)
from kyon_pl.errors import KyonError
from kyon_pl.lora import checkpointed_layers
from kyon_pl.runs.fingerprint import ACCUMULATE, TOKENS_PER_BATCH
from kyon_pl.training.throughput import duration

BYTES_PER_TOKEN = 4  # of a file of rows, roughly
BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Choice:
    """Values for the settings that are `auto`.

    Attributes:
        values: by the name of the setting.
        lines: what was chosen and why, one line for each setting, and what else to know.
    """

    values: Mapping[str, Any]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Way:
    """A way to train, by estimate."""

    cut: Cut
    layers: int  # checkpointed
    compiled: bool
    needed_bytes: int
    speed: SpeedSettings
    tokens_per_s: float

    def seconds(self, tokens: float) -> float:
        """For so many tokens on one device; for one of them if they have no end, so that compilation does not count."""
        if math.isinf(tokens):
            return 1 / self.tokens_per_s
        return tokens / self.tokens_per_s + COMPILE_S * self.compiled


def choose(settings: Namespace, config: ChatGLM2Config, target: Target, why_eager: str | None) -> Choice:
    """Choose values for the settings that are `auto`; values that are set by hand are kept.

    On a CPU the choice is fixed: the smallest batches, no checkpointing, no compilation. On GPUs it is the way that
    takes the least time of those that fit the free memory, by estimate.

    Args:
        settings: of fit.
        config: the configuration of the base.
        target: the devices.
        why_eager: why layers cannot be compiled there; None: they can.

    Raises:
        SettingError: the devices cannot share the optimizer step evenly, or a number that is set does not divide it.
    """
    cuts, names = step_cuts(settings, target.devices), auto_settings(settings)
    if target.device_type == "cpu":
        cut, layers, compiled = cuts[0], 0, False
        reasons = dict.fromkeys(names, "fixed on a CPU")
    else:
        why_eager = why_eager or _why_eager(settings)
        ways = [*_ways(settings, config, target, cuts, can_compile=why_eager is None)]
        tokens = planned_tokens(settings) / target.devices
        way = _fastest(ways, tokens, target)
        cut, layers, compiled = way.cut, way.layers, way.compiled
        reasons = _reasons(way, ways, tokens, target, why_eager)
    reasons[ACCUMULATE] = _step_in_words(settings, cut, target.devices)
    in_words = {0: "none", config.num_layers: "full"}.get(layers, layers)
    values = {
        TOKENS_PER_BATCH: cut.tokens_per_batch,
        ACCUMULATE: cut.accumulate,
        CHECKPOINTING: in_words,
        COMPILE: compiled,
    }
    if cut.tokens_per_batch is None:  # rows are not packed: the setting has no effect
        names = [name for name in names if name != TOKENS_PER_BATCH]
    lines = [f"{name}: {str(values[name]).lower()} (auto): {reasons[name]}" for name in names]
    return Choice({name: values[name] for name in names}, (*lines, *_about_precision(settings, target)))


def _ways(
    settings: Namespace, config: ChatGLM2Config, target: Target, cuts: list[Cut], *, can_compile: bool
) -> Iterator[_Way]:
    """For each cut, eager and compiled, the fewest checkpointed layers that fit, or all layers if none fits."""
    data, chosen = settings.data, settings[COMPILE]
    longest = data.max_tokens or LONGEST_ROW
    basis = memory_settings(settings, target, assumed_shape(1, longest), assumed_validation(settings.data, longest))
    for cut in cuts:
        shape = assumed_shape(data.rows_per_batch, longest)
        if cut.tokens_per_batch is not None:
            shape = assumed_shape(1, cut.tokens_per_batch)
        for compiled in [chosen] if chosen != "auto" else [False, True] if can_compile else [False]:
            each = replace(basis, training=shape, compiled=compiled)
            layers, needed = _fewest_layers(settings[CHECKPOINTING], config, each, target)
            speed = SpeedSettings(
                precision=each.precision,
                tokens=shape.total,
                checkpointed_share=layers / config.num_layers,
                compiled=compiled,
                quantization=each.quantization,
            )
            yield _Way(cut, layers, compiled, needed, speed, tokens_per_s(speed, target.card))


def _fewest_layers(
    checkpointing: Any, config: ChatGLM2Config, settings: MemorySettings, target: Target
) -> tuple[int, int]:
    """Checkpointed layers, and the memory that they need."""
    most = config.num_layers
    layers = range(most + 1) if checkpointing == "auto" else [checkpointed_layers(checkpointing, most)]
    for count in layers:
        peak = memory_estimate(config, replace(settings, checkpointing=count)).peak
        needed = needed_bytes(peak, target.device_type)
        if _fits(needed, target):
            break
    return count, needed


def _fits(needed: int, target: Target) -> bool:
    return target.available_bytes is not None and needed <= target.available_bytes * USABLE_SHARE


def _fastest(ways: list[_Way], tokens: float, target: Target) -> _Way:
    """The fastest way that fits, for so many tokens on each device; if none does, the one with the least memory."""
    fitting = [way for way in ways if _fits(way.needed_bytes, target)]
    if not fitting:
        return min(ways, key=lambda way: way.needed_bytes)
    return min(fitting, key=lambda way: way.seconds(tokens))


def fits_device(settings: Namespace, cut: Cut, config: ChatGLM2Config, target: Target) -> bool:
    """Whether settings fit a device that no other process uses.

    Args:
        settings: of fit, without any `auto`.
        cut: the only one that they leave open.
        config: the configuration of the base.
        target: the devices.
    """
    (way,) = _ways(settings, config, target, [cut], can_compile=True)
    return _fits(way.needed_bytes, replace(target, available_bytes=target.total_bytes))


def planned_tokens(settings: Namespace) -> float:
    """Tokens of the whole run over all devices, roughly and without reading rows; infinite if they are unknown.

    Args:
        settings: of fit.
    """
    trainer, data = settings.trainer, settings.data
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    step = data.tokens_per_step if data.batching in PACKED else None
    by_steps = trainer.max_steps * step if step and trainer.max_steps > 0 else math.inf
    if epochs == 0 or data.source == PUBLISHED_SOURCE:
        return min(epochs * PUBLISHED_ROWS * PUBLISHED_ROW_TOKENS, by_steps)
    try:
        files = local_files(data.source, data.split, data.name)
    except KyonError:  # the run will say what is wrong with its rows
        files = None
    if files is None:
        return by_steps
    return min(epochs * sum(file.stat().st_size for file in files) / BYTES_PER_TOKEN, by_steps)


def _why_eager(settings: Namespace) -> str | None:
    """Why layers cannot be compiled with these settings; None: they can."""
    if settings.model.shard_base:
        return "a sharded base cannot be compiled"
    if settings.data.batching not in PACKED:
        return "padded batches have many shapes, and each would be compiled"
    return None


def _reasons(way: _Way, ways: list[_Way], tokens: float, target: Target, why_eager: str | None) -> dict[str, str]:
    memory = f"{gib(way.needed_bytes)} at the peak by estimate"
    if target.available_bytes is not None:
        memory += f", of {gib(target.available_bytes)}"
    least = "as few layers as fit" if _fits(way.needed_bytes, target) else "it does not fit even so"
    speed = f"about {way.tokens_per_s:,.0f} tokens/s a device, {speed_source(way.speed, target.card)}"
    tried = ", ".join(str(size) for size in dict.fromkeys(each.cut.tokens_per_batch for each in ways))
    return {
        TOKENS_PER_BATCH: f"the fastest of {tried} here; {speed}",
        CHECKPOINTING: f"{least}: {memory}",
        COMPILE: why_eager or _compilation_in_words(way, ways, tokens, target),
    }


def _compilation_in_words(way: _Way, ways: list[_Way], tokens: float, target: Target) -> str:
    others = [each for each in ways if each.compiled != way.compiled and _fits(each.needed_bytes, target)]
    if not others or math.isinf(tokens):
        return f"it takes about {COMPILE_S} s at the start, in a run of unknown length"
    other = min(others, key=lambda each: each.seconds(tokens))
    eager, compiled = (other, way) if way.compiled else (way, other)
    saved_s = tokens / eager.tokens_per_s - tokens / compiled.tokens_per_s
    saves = "saves" if way.compiled else "would save"
    return f"{saves} about {duration(saved_s)} of this run, for {COMPILE_S} s at the start"


def _step_in_words(settings: Namespace, cut: Cut, devices: int) -> str:
    size, what, step = cut.tokens_per_batch, "tokens", settings.data.tokens_per_step
    if size is None:
        size, what, step = settings.data.rows_per_batch, "rows", settings.data.rows_per_step
    on = f" on {devices} devices" if devices > 1 else ""
    return f"{cut.accumulate} x {size:,} {what}{on}: the optimizer step of {step or 0:,} {what}"


def _about_precision(settings: Namespace, target: Target) -> Iterator[str]:
    if settings.trainer.precision == "16-mixed" and (target.capability or (0, 0)) >= BF16_CAPABILITY:
        faster = f"{1 / FLOAT16_SHARE - 1:.0%}"
        yield (
            f"trainer.precision: 16-mixed, as set: bf16-mixed would be about {faster} faster on this GPU, and needs no "
            "loss scaling (--trainer.precision bf16-mixed)"
        )
