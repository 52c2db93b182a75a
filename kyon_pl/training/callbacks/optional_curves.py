"""A callback that lets a run go on if its curves cannot be written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

from kyon_pl.logs import from_here

log = logging.getLogger(__name__)


class OptionalCurves(Callback):
    """Ends the curves of TensorBoard, with a warning, at the first failed write, for example on a full disk.

    TensorBoard writes in a thread and raises the thread's error at the next call, in the middle of a training step.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the event writer of each TensorBoardLogger by an `OptionalEventWriter`."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                writer = logger.experiment.file_writer
                writer.event_writer = OptionalEventWriter(writer.event_writer)


class OptionalEventWriter:
    """An event writer of TensorBoard that discards all events after the first failed write.

    Args:
        writer: writes the events.
    """

    def __init__(self, writer: EventFileWriter) -> None:
        self.writer = writer
        self.failed = False

    def get_logdir(self) -> str:
        """The folder of the event file."""
        return str(self.writer.get_logdir())

    def add_event(self, event: Event) -> None:
        """Write an event."""
        self._attempt(lambda: self.writer.add_event(event))

    def flush(self) -> None:
        """Wait until all events are in the file."""
        self._attempt(self.writer.flush)

    def close(self) -> None:
        """Close the file."""
        self._attempt(self.writer.close)

    def _attempt(self, write: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            write()
        except OSError as error:
            self.failed = True
            message = "curves in %s end here: they cannot be written (%s); the run goes on"
            log.warning(message, from_here(Path(self.get_logdir())), error.strerror or error)
