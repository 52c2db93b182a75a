"""SIGTERM and SIGINT: a checkpoint at the end of the optimizer step, on all ranks, and then the exit."""

from __future__ import annotations

import logging
import os
import signal
import threading
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.distributed.constants import default_pg_timeout

from kyon_pl.training.callbacks.step_checkpoint import StepCheckpoint

log = logging.getLogger(__name__)

# the process that has started other ranks puts its number here; they inherit it
LAUNCHER = "KYON_PL_LAUNCHER_PID"


class StopSignals(Checkpoint):
    """Stops a run on SIGTERM or SIGINT where it can be gone on from exactly; a second signal stops it at once.

    The first signal only sets a flag. The ranks compare their flags at every optimizer step, on the CPU, so that no
    device is waited for; any rank's signal stops all at the same step. They exit with 128 plus the signal's number.

    To Lightning this is a checkpoint callback, because those are called last: it leaves when `StepCheckpoint` has
    saved.

    Args:
        timeout: how long a rank waits for the others' flags.
    """

    def __init__(self, timeout: timedelta = default_pg_timeout) -> None:
        super().__init__()
        self.timeout = timeout
        self.received = 0
        self.agreed = 0
        self.training = False
        self.process = os.getpid()
        self.group: dist.ProcessGroup | None = None
        self.before: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen. Loader workers, forked later, inherit this: they let signals pass, and end with this process."""
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self.trainer = trainer
            self.before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            self._listen()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back; see `_take_back`."""
        self._take_back()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back; see `_take_back`."""
        self._take_back()
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo", timeout=self.timeout)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Agree on whether to stop after this step."""
        if self.group is None:
            self.agreed = self.received
        else:
            flag = torch.tensor(self.received)
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group)
            self.agreed = int(flag)
        if self.agreed:
            log.info("%s: this optimizer step is finished and saved", signal.Signals(self.agreed).name)
        for callback in step_checkpoints(trainer) if self.agreed else []:
            callback.save_next = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Leave, if this step is saved."""
        self._leave_if_saved(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave, if this step is saved."""
        self._leave_if_saved(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave, if this step is saved."""
        self._leave_if_saved(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave, if this step is saved; afterwards a signal ends the process at once."""
        self.training = False
        self._leave_if_saved(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Hand the signals back, and end ranks that this process has started and that would wait for it forever."""
        self._hand_back()
        launcher = trainer.strategy.launcher
        if launcher is not None and not isinstance(exception, SystemExit):
            launcher.kill(signal.SIGKILL)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the signals back."""
        self._hand_back()

    def _leave_if_saved(self, trainer: Trainer) -> None:
        if not self.agreed or any(c.last_saved_step != trainer.global_step for c in step_checkpoints(trainer)):
            return
        name = signal.Signals(self.agreed).name
        found = "%s: stopped after optimizer step %d, which is saved; the same command goes on from there"
        log.info(found, name, trainer.global_step)
        # Lightning in the process that started this one would kill that one when this one ends with another status
        launched = trainer.local_rank > 0 and os.environ.get(LAUNCHER) == str(os.getppid())
        raise SystemExit(0 if launched else 128 + self.agreed)

    def _take_back(self) -> None:
        """Take SIGTERM from Lightning, whose handler saves nothing and waits for all ranks, which one signal does not
        reach. Under SLURM it requeues the job, and keeps the signal.
        """
        if self.before:
            self._listen(*([signal.SIGINT] if SLURMEnvironment.detect() else []))
        self.training = True

    def _listen(self, *numbers: signal.Signals) -> None:
        for number in numbers or (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _hand_back(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return
        if self.received or not self.training:
            launcher = self.trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(signal.SIGKILL)
            os._exit(128 + number)
        self.received = number


def step_checkpoints(trainer: Trainer) -> list[StepCheckpoint]:
    """Those of this run."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, StepCheckpoint)]
