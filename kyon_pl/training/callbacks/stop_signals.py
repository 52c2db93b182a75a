"""A callback that saves a checkpoint and exits on signals such as SIGTERM, SIGINT and SIGHUP."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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

# environment variable with the id of the process that launched the other ranks, which inherit it
LAUNCHER = "KYON_PL_LAUNCHER_PID"

# the second of these exits at once: a person or a scheduler insists
INSISTENT = (signal.SIGTERM, signal.SIGINT)
# these come more than once by themselves: from the kernel and the shell when a terminal is closed; every second of CPU
REPEATED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)


class StopSignals(Checkpoint):
    """On a signal, saves a checkpoint after the current optimizer step and exits; a second SIGTERM or SIGINT exits now.

    The signals are SIGTERM, SIGINT and, unless they are ignored at the start, SIGHUP (the terminal was closed), SIGUSR1
    (a scheduler warns) and SIGXCPU (a limit of CPU time). `nohup` ignores SIGHUP. Under SLURM SIGUSR1 is left to
    Lightning.

    The first signal sets a flag. The ranks reduce their flags at every optimizer step, on the CPU and without
    synchronizing with the device, so that a signal to any rank stops all ranks at the same step. The exit status is 128
    plus the signal's number.

    It derives from Lightning's Checkpoint because these callbacks are called last, so that `StepCheckpoint` has saved
    before the exit.

    Args:
        timeout: how long a rank waits for the flags of the others.
    """

    def __init__(self, timeout: timedelta = default_pg_timeout) -> None:
        super().__init__()
        self.timeout = timeout
        self.received = 0
        self.agreed = 0
        self.training = False
        self.process = os.getpid()
        self.group: dist.ProcessGroup | None = None
        self.previous_handlers: dict[int, Any] = {}
        self.active = False  # from setup to the end of the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the handlers. Loader workers inherit them when they are forked; there they do nothing."""
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self.trainer = trainer
            self.previous_handlers = {number: signal.getsignal(number) for number in handled_signals()}
            self.active = True
            self._install_handlers()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers."""
        self._replace_lightning_handlers()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers, and create the process group of the flags."""
        self._replace_lightning_handlers()
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo", timeout=self.timeout)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Reduce the flags, and request a checkpoint of this step if one is set."""
        if self.group is None:
            self.agreed = self.received
        else:
            flag = torch.tensor(self.received)
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group)
            self.agreed = int(flag)
        if self.agreed:
            log.info("%s: finishing and saving this optimizer step", signal.Signals(self.agreed).name)
        for callback in step_checkpoints(trainer) if self.agreed else []:
            callback.save_next = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Exit if this step is saved."""
        self._exit_if_saved(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exit if this step is saved."""
        self._exit_if_saved(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exit if this step is saved."""
        self._exit_if_saved(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exit if this step is saved; afterwards a signal ends the process at once."""
        self.training = False
        self._exit_if_saved(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the previous handlers, and kill launched ranks, which would wait for this process forever."""
        self._restore_handlers()
        launcher = trainer.strategy.launcher
        if launcher is not None and not isinstance(exception, SystemExit):
            launcher.kill(signal.SIGKILL)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the previous handlers."""
        self._restore_handlers()

    def _exit_if_saved(self, trainer: Trainer) -> None:
        if not self.agreed or any(c.last_saved_step != trainer.global_step for c in step_checkpoints(trainer)):
            return
        name = signal.Signals(self.agreed).name
        message = "%s: stopped after optimizer step %d, which is saved; the same command resumes from there"
        log.info(message, name, trainer.global_step)
        # with another status, Lightning's launcher would kill the process that launched this one
        raise SystemExit(0 if is_launched_rank() else 128 + self.agreed)

    def _replace_lightning_handlers(self) -> None:
        """Replace Lightning's SIGTERM handler, which saves nothing and waits for all ranks, though a signal may reach
        only one. Under SLURM Lightning's handler requeues the job, and stays.
        """
        if self.active:
            self._install_handlers(*([signal.SIGINT] if SLURMEnvironment.detect() else []))
        self.training = True

    def _install_handlers(self, *numbers: signal.Signals) -> None:
        for number in numbers or self.previous_handlers:
            signal.signal(number, self._receive)

    def _restore_handlers(self) -> None:
        for number, handler in self.previous_handlers.items() if self.active else []:
            signal.signal(number, handler)
        self.active = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.active:
            # after an exception Lightning puts back the handlers that it found, which are these; a process forked
            # later that ignored SIGTERM would never end
            signal.signal(number, self.previous_handlers[number])
            signal.raise_signal(number)
            return
        if os.getpid() != self.process:
            return
        if self.received and number in REPEATED:
            return
        if self.received in INSISTENT or not self.training:
            launcher = self.trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(signal.SIGKILL)
            os._exit(128 + number)
        self.received = number


@contextmanager
def restored_handlers() -> Iterator[None]:
    """Restore the handlers of the signals that stop a run when the block ends.

    After an exception Lightning puts back the handlers that it found, which are those of `StopSignals`. They would keep
    the trainer and its model in memory, and a child process that is forked later loses a SIGTERM that comes while
    Python starts in it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (*INSISTENT, *REPEATED)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if handler is not None:  # None: it is not Python's
                signal.signal(number, handler)


def is_launched_rank() -> bool:
    """Whether `kyon-pl fit` has started this process as another rank; a fit that it ran as a command has no rank."""
    return os.environ.get(LAUNCHER) == str(os.getppid()) and os.environ.get("LOCAL_RANK", "0") != "0"


def handled_signals() -> list[signal.Signals]:
    """The signals that stop a run; see `StopSignals`."""
    left = {signal.SIGUSR1} if SLURMEnvironment.detect() else set()
    ignored = (signal.SIG_IGN, None)  # None: a handler that is not Python's
    return [*INSISTENT, *(n for n in REPEATED if n not in left and signal.getsignal(n) not in ignored)]


def step_checkpoints(trainer: Trainer) -> list[StepCheckpoint]:
    """The StepCheckpoint callbacks of this run."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, StepCheckpoint)]
