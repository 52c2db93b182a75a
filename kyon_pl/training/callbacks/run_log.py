"""The story of a run, one line an event, on the terminal and in `run.log`."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from kyon_pl.errors import KyonError
from kyon_pl.logs import write_run_log
from kyon_pl.training.callbacks.run_estimate import duration

log = logging.getLogger(__name__)


class RunLog(Callback):
    """Opens `run.log` as soon as there is a run folder, and tells of the start, validations, the end and a failure."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the file; what was said before is put into it."""
        if stage == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_run_log(Path(str(trainer.log_dir or trainer.default_root_dir)), trainer.global_rank)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where training begins."""
        self.started_s, self.first_step = time.perf_counter(), trainer.global_step
        log.info("training from optimizer step %d on", self.first_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what came out, in training; `validate` prints a table."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        values = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        # those of replies have more slashes and a line of their own
        told = ", ".join(f"{key} {value:.4f}" for key, value in values.items() if key.count("/") == 1)
        log.info("validation after step %d: %s", trainer.global_step, told)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that training is over, before its result is saved."""
        steps, seconds = trainer.global_step - self.first_step, time.perf_counter() - self.started_s
        log.info("trained to step %d: %d steps in %s", trainer.global_step, steps, duration(seconds))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what stopped the run. An error that a user can mend is said once, by the command line."""
        if not isinstance(exception, KyonError | SystemExit):
            first_line = (str(exception).splitlines() or [""])[0]
            log.error("stopped at step %d: %s: %s", trainer.global_step, type(exception).__name__, first_line)
