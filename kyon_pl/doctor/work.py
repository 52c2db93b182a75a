"""How many tokens and steps a run has, and how long it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.data.batches.sampler import PlannedBatchSampler, largest_batches
from kyon_pl.data.dialogue_data import DialogueData
from kyon_pl.data.reading.files import local_files
from kyon_pl.doctor.memory import MemorySettings, Slots
from kyon_pl.lora import frozen_dtype
from kyon_pl.training.throughput import USUAL_SHARE, flop_per_token, matrix_rate, rate_in_words, recomputed_share

# Counted in silk-road/Chat_Suzumiya_Fusion with the published tokenizer, the end of sequence included
PUBLISHED_SOURCE = "silk-road/Chat_Suzumiya_Fusion"
PUBLISHED_ROWS = 66_588
PUBLISHED_ROW_TOKENS = 1022.7
PUBLISHED_LONGEST_ROW = 4_237
# padding of packs of 2,048 tokens, and of rows padded as they come to the longest of a batch of 32
PACKED_PADDING, PADDED_PADDING = 0.021, 0.467
# the heaviest pack of 2,048 tokens of 1,500 published rows trains 340 of them; 99 % of all rows train up to 120
PACK_TRAINED_SHARE, ROW_TRAINED_TOKENS = 1 / 6, 120
# other rows, where data.max_tokens sets no limit
LONGEST_ROW = 2048


@dataclass(frozen=True)
class Schedule:
    """How often and on how many devices.

    Attributes:
        epochs: `trainer.max_epochs`; None: no limit.
        steps: `trainer.max_steps`; None: no limit.
        accumulate: `trainer.accumulate_grad_batches`.
        devices: over all nodes.
        limit_batches: `trainer.limit_train_batches`.
    """

    epochs: int | None
    steps: int | None
    accumulate: int
    devices: int
    limit_batches: int | float | None


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        counted: `rows`: they are here and were counted; `published`: estimated from what is known of the published
            rows; `settings`: nothing is known of the rows, and only the sizes of batches are.
        rows: to train on; None if nothing is known.
        steps: optimizer steps of the run; None likewise, or without any limit.
        slots: of the whole run, padding included, on one device.
        row_tokens: of a row on average.
        training: the micro-batch that needs the most memory.
        validation: the largest of validation; None: there is none.
    """

    counted: str
    rows: int | None
    steps: int | None
    slots: float | None
    row_tokens: float | None
    training: Slots
    validation: Slots | None


def look_at_work(data: dict[str, Any], tokenizer: Path | None, schedule: Schedule) -> Work:
    """Count the rows where they are on this machine, encoding them into the cache; else estimate.

    Args:
        data: the settings of `DialogueData`.
        tokenizer: the folder of the base, if it is here.
        schedule: how often they are gone through.

    Raises:
        KyonError: whatever is wrong with settings or rows.
    """
    module = _module(data, tokenizer)
    have_ids = data["tokenizer"] == "random"  # a random base has no tokenizer, and its rows carry ids
    sources = [(module.source, module.split)]
    if module.validation_source is not None:
        sources.append((module.validation_source, module.validation_split))
    if all(local_files(source, split) is not None for source, split in sources) and (tokenizer or have_ids):
        module.load("fit")
        module.plan_training()
        return _counted(module, schedule)
    return _estimated(module, schedule)


def assume_work(data: dict[str, Any], schedule: Schedule) -> Work:
    """As `look_at_work`, of rows that nothing is known of.

    Raises:
        SettingError: a setting with an impossible value.
    """
    return _estimated(_module(data, None), schedule)


def _module(data: dict[str, Any], tokenizer: Path | None) -> DialogueData:
    own = {"tokenizer": str(tokenizer) if tokenizer else None, "tokenizer_revision": None, "workers": 0}
    return DialogueData(**data | own)


def _counted(module: DialogueData, schedule: Schedule) -> Work:
    train, validation = module.rows["train"], module.rows["validation"]
    assert module.train_sampler is not None
    planner = module.train_sampler.planner
    sampler = PlannedBatchSampler(
        planner,
        world_size=schedule.devices,
        accumulate_grad_batches=schedule.accumulate,
        limit_batches=schedule.limit_batches,
    )
    used = max(1, sampler.batches_used * schedule.devices)
    heavy = [_slots(module, batch.row_numbers) for batch in largest_batches(planner, used, schedule.epochs or 1)]
    trained = max(slots.trained_tokens for slots in heavy)
    steps = _steps(sampler.steps_per_epoch, schedule)
    each = module.tokens_per_batch if module.batching == "packed" else float(train.tokens.sum()) / len(sampler)
    return Work(
        counted="rows",
        rows=len(train),
        steps=steps,
        slots=None if steps is None else steps * schedule.accumulate * each,
        row_tokens=float(train.tokens.mean()),
        training=replace(heavy[0], trained_tokens=trained),
        validation=_longest(validation.tokens, validation.trained_tokens(module.label_boundary), module),
    )


def _longest(tokens: NDArray[np.int64], trained: NDArray[np.int64], module: DialogueData) -> Slots | None:
    """The largest validation batch: rows meet others of their length there."""
    if not len(tokens):
        return None
    chosen = np.argsort(tokens)[-module.validation_rows_per_batch :]
    return Slots(rows=len(chosen), slots=int(tokens.max()), trained_tokens=int(trained[chosen].sum()))


def _slots(module: DialogueData, row_numbers: tuple[int, ...]) -> Slots:
    rows = module.rows["train"]
    numbers = list(row_numbers)
    trained = int(rows.trained_tokens(module.label_boundary)[numbers].sum())
    if module.batching == "packed":
        return Slots(rows=1, slots=module.tokens_per_batch, trained_tokens=trained)
    return Slots(rows=len(numbers), slots=int(rows.tokens[numbers].max()), trained_tokens=trained)


def _estimated(module: DialogueData, schedule: Schedule) -> Work:
    published = module.source == PUBLISHED_SOURCE
    longest = module.encoding.max_tokens or (PUBLISHED_LONGEST_ROW if published else LONGEST_ROW)
    packed = module.batching == "packed"
    training = _assumed(1, module.tokens_per_batch) if packed else _assumed(module.rows_per_batch, longest)
    validated = module.validation_share > 0 or module.validation_source is not None
    validation = _assumed(module.validation_rows_per_batch, longest) if validated else None
    if not published:
        return Work("settings", None, None, None, None, training, validation)
    share = 0.0 if module.validation_source else module.validation_share
    rows, tokens = round(PUBLISHED_ROWS * (1 - share)), min(PUBLISHED_ROW_TOKENS, longest)
    padding = PADDED_PADDING if module.batching == "padded" else PACKED_PADDING
    slots = float(module.tokens_per_batch) if packed else module.rows_per_batch * tokens / (1 - padding)
    batches = _limited(math.ceil(rows * tokens / (1 - padding) / slots / schedule.devices), schedule)
    steps = _steps(math.ceil(batches / schedule.accumulate), schedule)
    whole = None if steps is None else steps * schedule.accumulate * slots
    return Work("published", rows, steps, whole, tokens, training, validation)


def _limited(batches: int, schedule: Schedule) -> int:
    limit = schedule.limit_batches
    if isinstance(limit, float):
        return int(batches * limit)
    return batches if limit is None else min(batches, limit)


def _assumed(rows: int, slots: int) -> Slots:
    trained = rows * ROW_TRAINED_TOKENS if rows > 1 else round(slots * PACK_TRAINED_SHARE)
    return Slots(rows=rows, slots=slots, trained_tokens=trained)


def _steps(per_epoch: int, schedule: Schedule) -> int | None:
    by_epochs = math.inf if schedule.epochs is None else per_epoch * schedule.epochs
    steps = min(by_epochs, math.inf if schedule.steps is None else schedule.steps)
    return None if math.isinf(steps) else int(steps)


# Real tokens a second on one H100 80GB, ChatGLM2-6B, packed, varlen, by
# (precision, tokens_per_batch, checkpointing, compile, quantization).
# Source: benchmarks/results/2026-11-24-nvidia-h100-80gb.md, and -speed.md for what is compiled
MEASURED_TOKENS_PER_S: dict[tuple[object, ...], int] = {
    ("16-mixed", 2048, "full", False, None): 6_699,
    ("bf16-mixed", 2048, "full", False, None): 7_492,
    ("bf16-mixed", 8192, "full", False, None): 12_074,
    ("bf16-mixed", 8192, "none", False, None): 16_365,
    ("bf16-mixed", 8192, "full", True, None): 14_965,
    ("bf16-mixed", 8192, "none", True, None): 21_920,
    ("16-mixed", 8192, "none", True, None): 21_006,
    ("bf16-mixed", 8192, "full", True, "nf4"): 14_565,
    ("bf16-mixed", 8192, "full", True, "fp8"): 22_280,
    ("bf16-mixed", 8192, "none", True, "fp8"): 31_820,
}


@dataclass(frozen=True)
class Speed:
    """A guess at the time.

    Attributes:
        seconds: of all training steps; validation comes on top.
        source: what it is based on, in words.
    """

    seconds: float
    source: str


def estimate_time(config: ChatGLM2Config, settings: MemorySettings, work: Work, device: torch.device) -> Speed | None:
    """Seconds from what was measured with these settings on this kind of GPU, else from a matrix product timed now.

    Args:
        config: the shape of the base.
        settings: the run.
        work: how much there is to do.
        device: where; each of them does its share.

    Returns:
        None if it is not known how much there is to do.
    """
    if work.slots is None:
        return None
    how = settings.checkpointing, settings.compiled, settings.quantization
    key = settings.precision, settings.training.slots, *how
    known = MEASURED_TOKENS_PER_S.get(key)
    if known and settings.attention == "varlen" and _is_measured_gpu(device) and _is_6b(config):
        return Speed(work.slots / known, f"{known:,} tokens/s were measured with these settings on such a GPU")
    row_tokens = settings.training.slots if work.row_tokens is None else work.row_tokens
    recomputed = recomputed_share(settings.checkpointing, config)
    flop = work.slots * flop_per_token(config, row_tokens, recomputed=recomputed)
    rate = matrix_rate(device, frozen_dtype(settings.precision))
    source = f"{USUAL_SHARE:.0%} of the matrix products timed here, {rate_in_words(rate)}"
    return Speed(flop / (rate * USUAL_SHARE), source)


def _is_measured_gpu(device: torch.device) -> bool:
    return device.type == "cuda" and "H100 80GB HBM3" in torch.cuda.get_device_name(device)


def _is_6b(config: ChatGLM2Config) -> bool:
    return config.parameter_count == ChatGLM2Config().parameter_count
