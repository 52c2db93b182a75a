"""Signals that follow each other in a run; and after a run, when they do what they did before it."""

from __future__ import annotations

import multiprocessing
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from limits import HANG_S

from kyon_pl.training.callbacks import StopSignals


class Fault(Callback):
    """Ends a run in its first batch."""

    def on_train_batch_start(self, *arguments: object) -> None:
        raise RuntimeError("a fault in training")


class InterruptAndHangup(Callback):
    """Sends both: a person presses Ctrl-C and closes the terminal while the step is finished."""

    def on_train_batch_start(self, *arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)


def fit(folder: Path, callback: Callback) -> None:
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[StopSignals(), callback],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(BoringModel())


def wait(started: Event) -> None:
    started.set()
    time.sleep(HANG_S)


@pytest.mark.filterwarnings("ignore")
def test_a_hangup_after_an_interrupt_does_not_end_the_run_before_the_step_is_saved(tmp_path: Path) -> None:
    """The status tells: that of SIGINT comes from the end of the step, that of SIGHUP from an exit in the middle."""
    child = multiprocessing.get_context("fork").Process(target=fit, args=(tmp_path, InterruptAndHangup()))
    child.start()
    child.join(HANG_S)
    assert child.exitcode == 128 + signal.SIGINT


@pytest.mark.filterwarnings("ignore")
def test_after_a_failed_run_signals_do_what_they_did_before(tmp_path: Path) -> None:
    """As with readers of files and notebooks: a child process that ignores SIGTERM is waited for without end."""
    with pytest.raises(RuntimeError, match="a fault in training"):
        fit(tmp_path, Fault())
    forking = multiprocessing.get_context("fork")
    started = forking.Event()
    child = forking.Process(target=wait, args=(started,))
    child.start()
    assert started.wait(HANG_S / 2)
    child.terminate()
    child.join(HANG_S / 2)
    assert child.exitcode == -signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
