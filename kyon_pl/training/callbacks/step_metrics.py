"""Callbacks that log loss, throughput and memory of training steps, and the validation before the first step."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from kyon_pl.batch import Batch, Workload
from kyon_pl.training.optimizer import gradient_norm, total_steps

log = logging.getLogger(__name__)


class StepMetrics(Callback):
    """Logs metrics every `trainer.log_every_n_steps` optimizer steps, and at the last one of the run.

    They are those of the window of steps since the last entry.

    The open window is saved in checkpoints, so that a resumed run draws the same curves. Rates per second only count
    the steps since the resume.

    `train/loss` is the mean over the window's steps and all ranks of the loss that the optimizer saw.
    `train/learning_rate` and `train/grad_norm`, before clipping, are those of the last step. Token counts exclude
    padding, which `train/padding_share` measures, and count a shared beginning once for each of its rows;
    `train/shared_share`, if rows share any, is the share of the rows' tokens that is not computed again. Time spent in
    validation and in checkpoints is excluded. The device is synchronized with once per entry, and the ranks reduce one
    small tensor.

    Attributes:
        shown: values of the last entry for the progress bar.
    """

    def __init__(self) -> None:
        self.shown: dict[str, str] = {}
        self.saved: list[float] = []
        self.started = False
        self.grad_norm: torch.Tensor | None = None
        self.learning_rate = 0.0
        self.last_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the first window, or continue the window of a checkpoint."""
        workload = isinstance(trainer.datamodule, Workload)  # type: ignore[attr-defined]
        self.last_step = total_steps(trainer) if workload else trainer.max_steps
        self._restart(pl_module)
        self.started = True
        if self.saved:
            loss, *counts = self.saved
            self.loss_sum += loss
            self.tokens, self.trained_tokens, self.rows, self.slots, self.computed_tokens, self.steps = map(int, counts)
            self.before = self._counts()

    def _restart(self, pl_module: LightningModule) -> None:
        self.loss_sum = torch.zeros((), device=pl_module.device)
        self.tokens = self.trained_tokens = self.rows = self.slots = self.computed_tokens = self.steps = 0
        self.before = self._counts()
        self.started_s = time.perf_counter()

    def _counts(self) -> torch.Tensor:
        counts = [self.tokens, self.trained_tokens, self.rows, self.slots, self.computed_tokens]
        return torch.tensor(counts, dtype=torch.float64)

    def _window(self) -> torch.Tensor:
        """The open window: (7,) float64. Before the first step, it is that of the loaded checkpoint."""
        if not self.started:
            return torch.tensor(self.saved or [0.0] * 7, dtype=torch.float64)
        loss = self.loss_sum.detach().double().view(1)
        return torch.cat([loss, self._counts().to(loss), loss.new_tensor([self.steps])])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the open window of every rank: (ranks, 7) float64, the loss first and the number of steps last."""
        windows = torch.zeros(trainer.world_size, 7, dtype=torch.float64, device=pl_module.device)
        windows[trainer.global_rank] = self._window().to(windows)
        windows = trainer.strategy.reduce(windows, reduce_op="sum")
        checkpoint["callbacks"][self.state_key] = {"open_windows": windows.cpu()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore this rank's open window; after a change of the number of devices, rank 0 takes the sum."""
        windows = checkpoint["callbacks"].get(self.state_key, {}).get("open_windows", torch.zeros(0, 7))
        if windows.shape[1] == 6:  # of runs before rows could share tokens: all tokens were computed
            windows = torch.cat([windows[:, :5], windows[:, 1:2], windows[:, 5:]], dim=1)
        if 0 < len(windows) != trainer.world_size:
            steps = windows[0, -1]
            whole = windows.sum(dim=0)
            whole[0] *= trainer.world_size / len(windows)  # the sum over ranks is divided by their number
            windows = torch.zeros(trainer.world_size, 7, dtype=windows.dtype)
            windows[0] = whole
            windows[:, -1] = steps
        self.saved = windows[trainer.global_rank].tolist() if len(windows) else []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.validation_started_s = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock; the sanity check runs before the first window."""
        if not trainer.sanity_checking and trainer.training is False and trainer.state.fn == "fit":
            self.started_s += time.perf_counter() - self.validation_started_s

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Store learning rate and gradient norm, before clipping, of a step that is logged."""
        if self._is_logged(trainer, trainer.global_step + 1):
            self.grad_norm = gradient_norm(optimizer)
            self.learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count this micro-batch, and log after an optimizer step that is due."""
        self.loss_sum += outputs["loss"]  # already divided by the accumulation
        self.tokens += batch.tokens
        self.trained_tokens += batch.trained_tokens
        self.rows += len(batch.row_numbers)
        self.slots += batch.input_ids.numel()
        self.computed_tokens += batch.computed_tokens
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if not whole_step:
            return
        self.steps += 1
        if self._is_logged(trainer, trainer.global_step):
            self._log(trainer, pl_module)
            self._restart(pl_module)

    def _is_logged(self, trainer: Trainer, step: int) -> bool:
        every_n_steps: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return step % every_n_steps == 0 or step == self.last_step

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counts = torch.cat([self._counts(), self._counts() - self.before])
        summed = torch.cat([self.loss_sum.double().view(1), counts.to(self.loss_sum.device)])
        summed = trainer.strategy.reduce(summed, reduce_op="sum")
        loss, tokens, _, _, slots, computed, timed_tokens, timed_trained_tokens, timed_rows, *_ = summed.tolist()
        elapsed_s = time.perf_counter() - self.started_s
        values = {
            "train/loss": loss / (self.steps * trainer.world_size),
            "train/learning_rate": self.learning_rate,
            "train/tokens_per_s": timed_tokens / elapsed_s,
            "train/trained_tokens_per_s": timed_trained_tokens / elapsed_s,
            "train/rows_per_s": timed_rows / elapsed_s,
            "train/padding_share": 1 - computed / slots,
            "train/epoch": trainer.current_epoch + (trainer.fit_loop.batch_idx + 1) / trainer.num_training_batches,
        }
        if computed < tokens:
            values["train/shared_share"] = 1 - computed / tokens
        if self.grad_norm is not None:
            values["train/grad_norm"] = self.grad_norm.item()
        if pl_module.device.type == "cuda":
            values["train/peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        self.shown = {"loss": f"{values['train/loss']:.3f}", "tokens/s": f"{values['train/tokens_per_s']:,.0f}"}


class Progress(TQDMProgressBar):
    """Lightning's progress bar with the values of the last entry of `StepMetrics`.

    Values logged with `prog_bar=True` are tensors on the device, and showing them synchronizes at every micro-batch.
    """

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The values shown after the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepMetrics):
                metrics.update(callback.shown)
        return metrics

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bars: one that is left open moves the cursor under every bar that this process shows later."""
        bars = (self._train_progress_bar, self._val_progress_bar, self._test_progress_bar, self._predict_progress_bar)
        for bar in bars:
            if bar is not None:
                bar.close()


class FirstValidation(Callback):
    """Logs, at step 0, the validation that Lightning runs before training if `trainer.num_sanity_val_steps` is -1.

    Lightning itself discards the values of this sanity check.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the values, except in a resumed run."""
        loss = trainer.callback_metrics.get("val/loss")
        if loss is None or trainer.global_step > 0 or trainer.num_sanity_val_steps != float("inf"):
            return
        log.info("val/loss before the first step: %.4f", loss)
        for logger in trainer.loggers:
            logger.log_metrics({"val/loss": loss.item(), "val/perplexity": loss.exp().item()}, step=0)
