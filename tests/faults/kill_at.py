"""Ends a run at an exact place, as `KILL_AT` in its environment says; without it, these callbacks do nothing.

`KILL_AT` is `WHEN HOOK NUMBER [RANK SIGNAL TIMES]`: `early` is before this project's checkpoint callbacks get the same
hook and `late` is behind them; the number counts micro-batches, epochs or optimizer steps from the run's start (see
`NUMBERS`). The process group of the run is killed, all ranks and loader workers at once, unless a rank and a signal
are given: then that rank, or `all`, sends itself that signal, so many times.

In place of a signal, `OOM` raises torch's error for it, and `SLEEP` sleeps so many seconds.

`KILL_IN_SAVE` is `NUMBER MICROSECONDS`: the group is killed so long after the file operation of that number, counted
from 1, that training does in the folder of checkpoints, that is, inside a save.

`STOP_BEFORE` is a part of a path: the process stops itself, and can be continued, before it opens such a file for the
first time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
NUMBERS: dict[str, Callable[[Trainer], int]] = {
    "on_train_batch_start": lambda trainer: trainer.fit_loop.total_batch_idx,
    "on_train_batch_end": lambda trainer: trainer.fit_loop.total_batch_idx,
    "on_validation_end": lambda trainer: trainer.global_step,
    "on_train_epoch_end": lambda trainer: trainer.current_epoch,
    "on_train_end": lambda trainer: trainer.global_step,
}


class KillEarly(Callback):
    """Stands before the checkpoint callbacks, which Lightning moves to the end of its list."""

    when = "early"

    def _reached(self, hook: str, trainer: Trainer) -> None:
        when, wanted, number, *rest = (os.environ.get("KILL_AT") or "never - 0").split()
        if (when, wanted) != (self.when, hook) or trainer.sanity_checking or NUMBERS[hook](trainer) != int(number):
            return
        if not rest:
            if trainer.is_global_zero:  # the rank that writes
                os.killpg(0, signal.SIGKILL)
            return
        rank, name, times = rest
        meant = rank in (str(trainer.global_rank), "all")
        if meant and name == "SLEEP":
            time.sleep(int(times))
        elif meant and name == "OOM":
            raise torch.OutOfMemoryError("CUDA out of memory")
        for _ in range(int(times) if meant and name.startswith("SIG") else 0):
            os.kill(os.getpid(), signal.Signals[name])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and (place := os.environ.get("KILL_IN_SAVE")):
            number, microseconds = place.split()
            kill_in_save(int(number), int(microseconds))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._reached("on_train_batch_start", trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._reached("on_train_batch_end", trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reached("on_validation_end", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reached("on_train_epoch_end", trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reached("on_train_end", trainer)


def kill_in_save(number: int, microseconds: int) -> None:
    """See above; Python tells its audit hooks of every file operation before it is done."""
    remaining = [number]

    def count(event: str, args: tuple[Any, ...]) -> None:
        if event in OPERATIONS and "/checkpoints/" in str(args[0]):
            remaining[0] -= 1
            if remaining[0] == 0 and not microseconds:
                os.killpg(0, signal.SIGKILL)
            elif remaining[0] == 0:
                threading.Timer(microseconds / 1e6, os.killpg, (0, signal.SIGKILL)).start()

    sys.addaudithook(count)


def stop_before(part: str) -> None:
    """See above."""
    stopped = False

    def stop(event: str, args: tuple[Any, ...]) -> None:
        nonlocal stopped
        if event == "open" and part in str(args[0]) and not stopped:
            stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(stop)


class KillLate(KillEarly, Checkpoint):
    """Stands behind the checkpoint callbacks, because it is one and listed last."""

    when = "late"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One of the two counts operations, and it is the other one."""


if part := os.environ.get("STOP_BEFORE"):
    stop_before(part)
