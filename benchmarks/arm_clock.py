"""Takes the times of optimizer steps without waiting for the device, and makes one row of numbers of them."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import SimpleProfiler

WAIT = "[_TrainingEpochLoop].train_dataloader_next"  # Lightning's name of it
Count = int | torch.Tensor


@dataclass
class Clock:
    """Marks the end of each optimizer step, on a GPU by events in its stream.

    On a CPU, seconds are those that its cores worked for this process, which other processes do not change.

    Attributes:
        device: the one that computes.
        started_s: when the arm began, by `time.time`.
        warmup_steps: steps that do not count.
    """

    device: torch.device
    started_s: float
    warmup_steps: int
    first_step_s: float = 0.0
    graphs: int = 0
    waited_s: float | None = None
    warm_s: float = 0.0
    marks: list[Any] = field(default_factory=list)
    tokens: list[Count] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    computed: list[Count] = field(default_factory=list)
    labels: list[Count] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)

    def step(self, tokens: Count, rows: int, loss: torch.Tensor, computed: Count = 0, labels: Count = 0) -> bool:
        """An optimizer step has been given to the device.

        Args:
            tokens: real ones.
            rows: real ones.
            loss: of the step.
            computed: tokens that are computed; fewer than real ones if rows share their beginnings. 0: not counted.
            labels: trained tokens.

        Returns:
            Whether the warm-up ended with it.
        """
        if self.device.type == "cuda":
            mark: Any = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.process_time()
        self.marks.append(mark)
        self.tokens.append(tokens)
        self.rows.append(rows)
        self.computed.append(computed)
        self.labels.append(labels)
        self.losses.append(loss.detach())
        if len(self.marks) == 1:
            self._synchronize()
            self.first_step_s = time.time() - self.started_s
        if len(self.marks) != self.warmup_steps:
            return False
        self.graphs, self.warm_s = compiled_graphs(), time.perf_counter()
        return True

    def result(self) -> dict[str, Any]:
        """The numbers, once all steps are done.

        Raises:
            RuntimeError: training ended with the warm-up, because there were too few rows.
        """
        if len(self.marks) <= self.warmup_steps:
            raise RuntimeError(f"{len(self.marks)} optimizer steps, and {self.warmup_steps} are for warming up")
        self._synchronize()
        first = self.warmup_steps
        seconds = [self._between(a, b) for a, b in zip(self.marks[first - 1 :], self.marks[first:], strict=False)]
        tokens = [int(count) for count in self.tokens[first:]]
        losses = [float(loss) for loss in self.losses]
        cuda = self.device.type == "cuda"
        return {
            "steps": len(seconds),
            "tokens_per_s": statistics.median(n / s for n, s in zip(tokens, seconds, strict=True)),
            "tokens_per_s_overall": sum(tokens) / sum(seconds),
            "computed_per_s": sum(int(count) for count in self.computed[first:]) / sum(seconds),
            "labels_per_s": sum(int(count) for count in self.labels[first:]) / sum(seconds),
            "rows_per_s": sum(self.rows[first:]) / sum(seconds),
            "first_step_s": self.first_step_s,
            "waited_share": self.waited_s / (time.perf_counter() - self.warm_s) if self.waited_s is not None else None,
            "recompiled": compiled_graphs() - self.graphs,
            "losses": losses,
            "non_finite": sum(not math.isfinite(loss) for loss in losses),
            "allocated_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if cuda else None,
        }

    def _between(self, a: Any, b: Any) -> float:
        return float(a.elapsed_time(b)) / 1000 if self.device.type == "cuda" else float(b - a)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def compiled_graphs() -> int:
    """Graphs that torch has compiled in this process so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


class StepClock(Callback):
    """Has a clock mark the optimizer steps of a fit; `--allow_code arm_clock` and `--trainer.callbacks+` add it.

    Attributes:
        clock: which one; set before fit, because a configuration can only name the class.
        last_step: training ends after it. `auto` chooses for a whole run, which a limit in its settings would shorten.
        found: its result.
    """

    clock: Clock
    last_step: int
    found: dict[str, Any]

    def __init__(self) -> None:
        self.tokens = self.rows = self.computed = self.labels = 0
        self.loss: torch.Tensor | float = 0.0
        self.steps = 0
        self.waits = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a micro-batch, and mark a step."""
        self.tokens += batch.tokens
        self.rows += len(batch.row_numbers)
        self.computed += batch.computed_tokens
        self.labels += batch.trained_tokens
        self.loss = self.loss + outputs["loss"].detach()
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        assert isinstance(self.loss, torch.Tensor)
        if self.clock.step(self.tokens, self.rows, self.loss, self.computed, self.labels):
            self.waits = len(waits_s(trainer))
        self.tokens = self.rows = self.computed = self.labels = 0
        self.loss = 0.0
        trainer.should_stop = self.steps >= self.last_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the clock, before what comes after training."""
        self.clock.waited_s = sum(waits_s(trainer)[self.waits :])
        type(self).found = self.clock.result()


def waits_s(trainer: Trainer) -> list[float]:
    """Seconds of each time that the loop asked for a batch."""
    profiler = trainer.profiler  # type: ignore[attr-defined]
    assert isinstance(profiler, SimpleProfiler)
    return list(profiler.recorded_durations[WAIT])
