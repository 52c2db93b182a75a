"""The rows, tokens and optimizer steps of a run, and an estimate of its training time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from numpy.typing import NDArray

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.data.batches.plan import PACKED
from kyon_pl.data.batches.sampler import MicroBatch, PlannedBatchSampler, largest_batches
from kyon_pl.data.dialogue_data import DialogueData
from kyon_pl.data.reading.files import local_files
from kyon_pl.doctor.device import Target
from kyon_pl.doctor.memory import BatchShape, MemorySettings
from kyon_pl.doctor.speed import SpeedSettings, speed_source, tokens_per_s
from kyon_pl.lora import frozen_dtype
from kyon_pl.training.throughput import USUAL_SHARE, flop_per_token, matrix_rate, rate_in_words, recomputed_share

# Counted in silk-road/Chat_Suzumiya_Fusion with the published tokenizer, the end of sequence included
PUBLISHED_SOURCE = "silk-road/Chat_Suzumiya_Fusion"
PUBLISHED_ROWS = 66_588
PUBLISHED_ROW_TOKENS = 1022.7
PUBLISHED_LONGEST_ROW = 4_237
# tokens of rows for each token that is computed, by `rows_per_cluster`; a plan of all published rows without padding
SHARED_GAINS = {1: 1.0, 2: 1.24, 3: 1.38, 4: 1.445, 6: 1.51, 8: 1.54}
SHARED_GAINS_WITHOUT_LIMIT = 1.64
# padding of packs of 2,048 tokens, and of unsorted rows padded to the longest of a batch of 32
PACKED_PADDING, PADDED_PADDING = 0.021, 0.467
# the pack of 2,048 tokens with the most trained tokens in 1,500 published rows has 340; 99 % of all rows have up to 120
PACK_TRAINED_SHARE, ROW_TRAINED_TOKENS = 1 / 6, 120
# assumed for other rows if data.max_tokens sets no limit
LONGEST_ROW = 2048


@dataclass(frozen=True)
class Schedule:
    """The trainer's limits.

    Attributes:
        epochs: `trainer.max_epochs`; None: no limit.
        steps: `trainer.max_steps`; None: no limit.
        accumulate: `trainer.accumulate_grad_batches`.
        devices: number of devices, over all nodes.
        limit_batches: `trainer.limit_train_batches`.
    """

    epochs: int | None
    steps: int | None
    accumulate: int
    devices: int
    limit_batches: int | float | None

    def total_steps(self, steps_per_epoch: int) -> int | None:
        """Optimizer steps of the run; None: no limit."""
        by_epochs = math.inf if self.epochs is None else steps_per_epoch * self.epochs
        steps = min(by_epochs, math.inf if self.steps is None else self.steps)
        return None if math.isinf(steps) else int(steps)

    def used_batches(self, batches: int) -> int:
        """Micro-batches of an epoch per device under `limit_batches`."""
        if isinstance(self.limit_batches, float):
            return int(batches * self.limit_batches)
        return batches if self.limit_batches is None else min(batches, self.limit_batches)


@dataclass(frozen=True)
class Work:
    """The amount of work of a run.

    Attributes:
        counted: `rows`: the rows are on this machine and were counted; `published`: estimated from statistics of the
            published rows; `settings`: the rows are unknown, and only the batch sizes are given.
        rows: number of training rows; None: unknown.
        steps: optimizer steps of the run; None: unknown or unlimited.
        slots: tokens of the run on one device, padding included; None: unknown or unlimited.
        row_tokens: mean tokens per row; None: unknown.
        training: the training batch that needs the most memory.
        validation: the largest validation batch; None: no validation.
    """

    counted: str
    rows: int | None
    steps: int | None
    slots: float | None
    row_tokens: float | None
    training: BatchShape
    validation: BatchShape | None


def count_work(data: dict[str, Any], tokenizer: Path | None, schedule: Schedule) -> Work:
    """Count rows that are on this machine, which encodes them into the cache; estimate others.

    Args:
        data: the settings of `DialogueData`.
        tokenizer: the folder of the base; None: it is not on this machine.
        schedule: the trainer's limits.

    Raises:
        KyonError: invalid settings or rows.
    """
    module = _data_module(data, tokenizer)
    have_ids = data["tokenizer"] == "random"  # a random base has no tokenizer; its rows carry ids
    sources = [(module.source, module.split, module.name)]
    if module.validation_source is not None:
        name = module.name if module.validation_source == module.source else None
        sources.append((module.validation_source, module.validation_split, name))
    if all(local_files(*source) is not None for source in sources) and (tokenizer or have_ids):
        module.load("fit")
        module.plan_training()
        return _counted_work(module, schedule)
    return _estimated_work(module, schedule)


def estimate_work(data: dict[str, Any], schedule: Schedule) -> Work:
    """Estimate the work from the settings, without reading any rows.

    Args:
        data: the settings of `DialogueData`.
        schedule: the trainer's limits.

    Raises:
        SettingError: a setting with an invalid value.
    """
    return _estimated_work(_data_module(data, None), schedule)


def _data_module(data: dict[str, Any], tokenizer: Path | None) -> DialogueData:
    own = {"tokenizer": str(tokenizer) if tokenizer else None, "tokenizer_revision": None, "workers": 0}
    return DialogueData(**data | own)


def _counted_work(module: DialogueData, schedule: Schedule) -> Work:
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
    largest = [_shape(module, batch) for batch in largest_batches(planner, used, schedule.epochs or 1)]
    steps = schedule.total_steps(sampler.steps_per_epoch)
    slots = module.tokens_per_batch if module.batching in PACKED else float(train.tokens.sum()) / len(sampler)
    return Work(
        counted="rows",
        rows=len(train),
        steps=steps,
        slots=None if steps is None else steps * schedule.accumulate * slots,
        row_tokens=float(train.tokens.mean()),
        training=replace(largest[0], trained_tokens=max(shape.trained_tokens for shape in largest)),
        validation=_validation_shape(validation.tokens, validation.trained_tokens(module.label_boundary), module),
    )


def _validation_shape(tokens: NDArray[np.int64], trained: NDArray[np.int64], module: DialogueData) -> BatchShape | None:
    """The largest validation batch, which has the longest rows: validation batches are sorted by length."""
    if not len(tokens):
        return None
    longest = np.argsort(tokens)[-module.validation_rows_per_batch :]
    return BatchShape(rows=len(longest), slots=int(tokens.max()), trained_tokens=int(trained[longest].sum()))


def _shape(module: DialogueData, batch: MicroBatch) -> BatchShape:
    rows, numbers = module.rows["train"], list(batch.row_numbers)
    trained = int(rows.trained_tokens(module.label_boundary)[numbers].sum())
    if module.batching in PACKED:
        slots = module.tokens_per_batch
        keys = slots + sum(batch.shared) if module.batching == "shared" else None
        return BatchShape(rows=1, slots=slots, trained_tokens=trained, keys=keys)
    return BatchShape(rows=len(numbers), slots=int(rows.tokens[numbers].max()), trained_tokens=trained)


def _estimated_work(module: DialogueData, schedule: Schedule) -> Work:
    published, packed = module.source == PUBLISHED_SOURCE, module.batching in PACKED
    longest = module.encoding.max_tokens or (PUBLISHED_LONGEST_ROW if published else LONGEST_ROW)
    training = assumed_shape(1, module.tokens_per_batch) if packed else assumed_shape(module.rows_per_batch, longest)
    validation = assumed_validation(module, longest)
    if not published:
        return Work("settings", None, None, None, None, training, validation)
    share = 0.0 if module.validation_source else module.validation_share
    rows, tokens = round(PUBLISHED_ROWS * (1 - share)), min(PUBLISHED_ROW_TOKENS, longest)
    padding = PADDED_PADDING if module.batching == "padded" else PACKED_PADDING
    slots = float(module.tokens_per_batch) if packed else module.rows_per_batch * tokens / (1 - padding)
    computed = tokens / (shared_gain(module.rows_per_cluster) if module.batching == "shared" else 1)
    batches = schedule.used_batches(math.ceil(rows * computed / (1 - padding) / slots / schedule.devices))
    steps = schedule.total_steps(math.ceil(batches / schedule.accumulate))
    total_slots = None if steps is None else steps * schedule.accumulate * slots
    return Work("published", rows, steps, total_slots, tokens, training, validation)


def shared_gain(rows_per_cluster: int | None) -> float:
    """The tokens of published rows for each computed one; those of the next smaller cluster that was measured."""
    if rows_per_cluster is None:
        return SHARED_GAINS_WITHOUT_LIMIT
    return max(gain for rows, gain in SHARED_GAINS.items() if rows <= rows_per_cluster)


def assumed_shape(rows: int, slots: int) -> BatchShape:
    """A batch of rows that were not counted.

    Args:
        rows: of the batch; 1 if packed.
        slots: tokens of the longest row, or of the pack.
    """
    trained = rows * ROW_TRAINED_TOKENS if rows > 1 else round(slots * PACK_TRAINED_SHARE)
    return BatchShape(rows=rows, slots=slots, trained_tokens=trained)


def assumed_validation(data: DialogueData | Namespace, longest: int) -> BatchShape | None:
    """A validation batch of rows that were not counted; None if nothing is validated.

    Args:
        data: with the settings of the data.
        longest: tokens of the longest row.
    """
    validated = data.validation_share > 0 or data.validation_source is not None
    return assumed_shape(data.validation_rows_per_batch, longest) if validated else None


@dataclass(frozen=True)
class TrainingTime:
    """An estimate of the training time.

    Attributes:
        seconds: duration of all training steps, without validation.
        source: the basis of the estimate, as text.
    """

    seconds: float
    source: str


def estimate_time(config: ChatGLM2Config, settings: MemorySettings, work: Work, target: Target) -> TrainingTime | None:
    """Estimate the training time from measured speeds, for a GPU in their table, or by timing a matrix product here.

    Args:
        config: the configuration of the base.
        settings: the settings of the run.
        work: the amount of work on one device.
        target: the devices.

    Returns:
        The time; None if the amount of work or the speed of the device is unknown.
    """
    if work.slots is None:
        return None
    recomputed = recomputed_share(settings.checkpointing, config)
    if target.card is not None and settings.packed and _is_6b(config):
        speed = SpeedSettings(
            precision=settings.precision,
            tokens=settings.training.slots,
            checkpointed_share=recomputed,
            compiled=settings.compiled,
            quantization=settings.quantization,
        )
        tokens = tokens_per_s(speed, target.card)
        source = f"{tokens:,.0f} tokens/s on each device, {speed_source(speed, target.card)}"
        return TrainingTime(work.slots / tokens, source)
    if not target.is_local:
        return None
    device = torch.device(target.device_type)
    row_tokens = settings.training.slots if work.row_tokens is None else work.row_tokens
    flop = work.slots * flop_per_token(config, row_tokens, recomputed=recomputed)
    rate = matrix_rate(device, frozen_dtype(settings.precision))
    source = f"{USUAL_SHARE:.0%} of the matrix product rate measured now, {rate_in_words(rate)}"
    return TrainingTime(flop / (rate * USUAL_SHARE), source)


def _is_6b(config: ChatGLM2Config) -> bool:
    return config.parameter_count == ChatGLM2Config().parameter_count
