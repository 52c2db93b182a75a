"""Callbacks that report a run to its user: run.log, a time estimate, the first rows and the final metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from kyon_pl.batch import RowSource, Workload
from kyon_pl.errors import KyonError
from kyon_pl.evaluation.held_out import block
from kyon_pl.evaluation.scores import ORDER
from kyon_pl.logs import write_run_log
from kyon_pl.lora import frozen_dtype
from kyon_pl.training.callbacks.held_out_replies import HeldOutReplies
from kyon_pl.training.loggers import all_settings, log_comparison, log_layout, log_text
from kyon_pl.training.module import ChatGLM2LoRA
from kyon_pl.training.optimizer import learning_rates, total_steps
from kyon_pl.training.run_length import warn_if_too_short
from kyon_pl.training.throughput import (
    USUAL_SHARE,
    duration,
    flop_per_token,
    matrix_rate,
    rate_in_words,
    recomputed_share,
)

log = logging.getLogger(__name__)


class RunEstimate(Callback):
    """Logs rows, optimizer steps, the highest learning rate and an estimate of the training time on this device.

    It warns, with the option to add, if a run cannot learn: few steps, a warm-up without end, or no validation.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the estimate, after the data and before the base is loaded.

        Raises:
            SettingError: settings of the optimizer or the schedule that are out of range or not finite.
        """
        workload = trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit" or not trainer.is_global_zero or not isinstance(workload, Workload):
            return
        assert isinstance(pl_module, ChatGLM2LoRA)
        base, steps = pl_module.frozen_base, total_steps(trainer)
        epochs = steps / workload.steps_per_epoch / trainer.world_size
        tokens, computed = workload.tokens_per_epoch * epochs, workload.computed_tokens_per_epoch * epochs
        of_them = f", {computed:,.0f} of them computed" if computed < tokens else ""
        recomputed = recomputed_share(base.checkpointing, base.config)
        # attention is omitted: with rows of 500 tokens it takes one percent of 6B's operations
        flop = computed * flop_per_token(base.config, row_tokens=0, recomputed=recomputed)
        flop_per_s = matrix_rate(trainer.strategy.root_device, frozen_dtype(str(trainer.precision)))
        each = f" on each of {trainer.world_size} devices" if trainer.world_size > 1 else ""
        rates = learning_rates(pl_module.make_optimizer, pl_module.make_schedule, steps)
        rows = f"{workload.training_rows:,} training rows, {workload.validation_rows:,} validation rows"
        log.info("run: %s → %s optimizer steps → highest learning rate %.3g", rows, f"{steps:,}", rates.highest)
        log.info(
            "estimate: %s optimizer steps, %s tokens%s, about %s (%.0f %% of the matrix products measured here, %s)",
            f"{steps:,}",
            f"{tokens:,.0f}",
            of_them + each,
            duration(flop / (flop_per_s * USUAL_SHARE)),
            USUAL_SHARE * 100,
            rate_in_words(flop_per_s),
        )
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            warn_if_too_short(trainer, workload, steps, rates)


class RunLog(Callback):
    """Opens `run.log` in the run folder, and logs start, validations, end and failure of the training."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the file; it starts with the lines that were logged before. Without a logger, only fit has a folder."""
        folder = trainer.log_dir if trainer.loggers else None  # without a logger, log_dir is the working folder
        folder = folder or (trainer.default_root_dir if stage == "fit" else None)
        if folder and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_run_log(Path(str(folder)), trainer.global_rank)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the first optimizer step."""
        self.started_s, self.first_step = time.perf_counter(), trainer.global_step
        log.info("training from optimizer step %d on", self.first_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics of a validation in fit; `validate` prints a table."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        values = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        # metrics of replies, val/replies/…, are logged by HeldOutReplies
        metrics = ", ".join(f"{key} {value:.4f}" for key, value in values.items() if key.count("/") == 1)
        log.info("validation after step %d: %s", trainer.global_step, metrics)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the number of steps and the time, before the result is saved."""
        steps, seconds = trainer.global_step - self.first_step, time.perf_counter() - self.started_s
        log.info("trained to step %d: %d steps in %s", trainer.global_step, steps, duration(seconds))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log an unexpected error; the command line logs a KyonError itself."""
        if not isinstance(exception, KyonError | SystemExit):
            first_line = (str(exception).splitlines() or [""])[0]
            log.error("stopped at step %d: %s: %s", trainer.global_step, type(exception).__name__, first_line)


class ShownRows(Callback):
    """Logs the first training rows as a text at step 0: trained text in ⟦…⟧, special tokens in ‹…›.

    Args:
        rows: number of rows.
    """

    def __init__(self, rows: int = 3) -> None:
        self.rows = rows

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the rows, once per run; without a tokenizer, rows of ids cannot be shown."""
        source = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, ChatGLM2LoRA)
        if pl_module.tokenizer is None or trainer.global_step > 0 or not trainer.is_global_zero:
            return
        if trainer.loggers and isinstance(source, RowSource):
            text = block(source.shown_rows(self.rows))
            for logger in trainer.loggers:
                log_text(logger, "what is trained", text, 0)


class FinalMetrics(Callback):
    """Writes the run's row in TensorBoard's HParams tab at the end of fit: a dozen settings, and the real curves.

    The tab shows the last values of `val/loss`, of its minimum so far, `val/best_loss`, which this callback draws, and
    of the metrics of replies. No curve has one point.

    Args:
        settings: returns the settings, each as JSON by its dotted name; called when they are logged.
    """

    def __init__(self, settings: Callable[[], Mapping[str, str]]) -> None:
        self.settings = settings
        self.best_loss: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The lowest validation loss so far."""
        return {"best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it; checkpoints of kyon_pl before `format_version` have none."""
        self.best_loss = state_dict.get("best_loss")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log all settings, except to TensorBoard, whose table would be too wide; there, log what to draw together."""
        replies = any(isinstance(callback, HeldOutReplies) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        without = [] if pl_module.device.type == "cuda" else ["train/peak_gpu_memory"]
        without += [] if replies else ["val/replies/", "val/base_replies/"]
        for logger in trainer.loggers:
            if trainer.is_global_zero:
                log_layout(logger, without)
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(all_settings(self.settings()))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the lowest validation loss so far, before checkpoints are saved."""
        loss = trainer.callback_metrics.get("val/loss")
        if loss is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.best_loss = loss.item() if self.best_loss is None else min(self.best_loss, loss.item())
        for logger in trainer.loggers:
            logger.log_metrics({"val/best_loss": self.best_loss}, step=trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row. This happens after everything is saved, because a run that is killed before ends twice."""
        of_replies = (f"val/replies/{name}" for name in ORDER)
        curves = ["val/loss", "val/best_loss", *(name for name in of_replies if name in trainer.callback_metrics)]
        for logger in trainer.loggers if self.best_loss is not None and trainer.is_global_zero else []:
            log_comparison(logger, self.settings(), run_size(trainer), curves, trainer.global_step)


def run_size(trainer: Trainer) -> dict[str, float | None]:
    """Steps and epochs of a run, and rows and tokens of a mean optimizer step, over all ranks.

    Args:
        trainer: at the end of fit.

    Returns:
        The numbers; None for those that are unknown.
    """
    workload, steps = trainer.datamodule, trainer.global_step  # type: ignore[attr-defined]
    size: dict[str, float | None] = {"steps": steps, "epochs": None, "rows a step": None, "tokens a step": None}
    if isinstance(workload, Workload):
        per_epoch = -(-workload.batches_per_epoch // trainer.accumulate_grad_batches)
        size |= {"epochs": round(steps / per_epoch, 2), "tokens a step": round(workload.tokens_per_epoch / per_epoch)}
        if trainer.limit_train_batches == 1.0 and isinstance(trainer.limit_train_batches, float):  # all of them
            size["rows a step"] = round(workload.training_rows / per_epoch, 1)
    return size
