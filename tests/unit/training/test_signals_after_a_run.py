"""What a run that ended leaves behind in its process: signals do what they did before it."""

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


def wait(started: Event) -> None:
    started.set()
    time.sleep(HANG_S)


@pytest.mark.filterwarnings("ignore")
def test_after_a_failed_run_signals_do_what_they_did_before(tmp_path: Path) -> None:
    """As with readers of files and notebooks: a child process that ignores SIGTERM is waited for without end."""
    callbacks = [StopSignals(), Fault()]
    trainer = Trainer(
        accelerator="cpu", callbacks=callbacks, default_root_dir=tmp_path, logger=False, enable_progress_bar=False
    )
    with pytest.raises(RuntimeError, match="a fault in training"):
        trainer.fit(BoringModel())
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
