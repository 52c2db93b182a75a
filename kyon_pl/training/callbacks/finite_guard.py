"""A callback that stops a run at the first loss or gradient that is not finite, and warns of gradient spikes."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from kyon_pl.batch import Batch, BatchSource
from kyon_pl.errors import TrainingError
from kyon_pl.training.optimizer import gradient_norm

log = logging.getLogger(__name__)

# gradient norms usually lie within a factor of three of their median; the median needs some steps
SPIKE_FACTOR, MEDIAN_STEPS, MIN_STEPS = 10.0, 50, 20
SHOWN_ROWS = 3

# a gradient scaler starts at 65536 and halves at every skipped step; below 1, unscaled gradients overflow float16
SMALLEST_SCALE = 1.0


@dataclass
class StepReport:
    """Losses and gradient norm of one optimizer step.

    Attributes:
        step: number of the step, from 1.
        learning_rate: learning rate of the step.
        values: (micro-batches + 3,) float32 on the CPU, possibly still being copied: the losses of the micro-batches;
            the number of losses that are not finite, over all ranks; the gradient norm; the loss scale, 1 without a
            scaler.
        arrived: CUDA event of the copy; None on a CPU.
    """

    step: int
    learning_rate: float
    values: torch.Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> tuple[list[float], float, float, float]:
        """Unscaled losses of this rank, number of bad losses over all ranks, gradient norm, and loss scale."""
        if self.arrived is not None:
            self.arrived.synchronize()
        *losses, bad_losses, norm, scale = self.values.tolist()
        return [loss / scale for loss in losses], bad_losses, norm, scale


class FiniteGuard(Callback):
    """Checks every loss and every gradient once per optimizer step, and names the rows they come from.

    Losses stay on the device until the step is complete; then one small tensor is copied to the host. Without a
    gradient scaler it is read before the optimizer changes any weight. With a scaler, which synchronizes with the
    device itself, it is read after the step and adds no further synchronization.

    With a scaler, a gradient that is not finite is normal while the loss is finite: the scaler skips the step and
    halves its scale.

    A gradient norm far above the median is logged as a warning, with the rows of the largest loss, and training
    continues.
    """

    def __init__(self) -> None:
        self.row_numbers: list[tuple[int, ...]] = []
        self.losses: list[torch.Tensor] = []
        self.report: StepReport | None = None
        self.norms: deque[float] = deque(maxlen=MEDIAN_STEPS)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Store the row numbers of the micro-batch."""
        self.row_numbers.append(batch.row_numbers)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Store the loss on its device; a scaler has already scaled it."""
        self.losses.append(loss.detach().float())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Copy losses and gradient norm to the host and, without a scaler, check them.

        Raises:
            TrainingError: a loss or a gradient is not finite.
        """
        losses = torch.stack(self.losses)
        bad_losses = (~losses.isfinite()).sum().float()
        if trainer.world_size > 1:
            dist.all_reduce(bad_losses)  # Lightning's reduce adds a barrier
        norm = gradient_norm(optimizer).to(losses)
        scale = losses.new_ones(()) if trainer.scaler is None else trainer.scaler.scale(losses.new_ones(()))
        values = torch.cat([losses, torch.stack([bad_losses, norm, scale])]).to("cpu", non_blocking=True)
        arrived = torch.cuda.current_stream(losses.device).record_event() if losses.is_cuda else None
        rate = float(optimizer.param_groups[0]["lr"])
        self.report = StepReport(trainer.global_step + 1, rate, values, arrived)
        if trainer.scaler is None:
            self._check(trainer, self.report)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """With a scaler, check the step that it has just taken or skipped.

        Raises:
            TrainingError: a loss is not finite, or the loss scale is too small.
        """
        if self.report is None:
            return
        if trainer.scaler is not None:
            self._check(trainer, self.report)
        self.row_numbers, self.losses, self.report = [], [], None

    def _check(self, trainer: Trainer, report: StepReport) -> None:
        losses, bad_losses, norm, scale = report.read()
        if bad_losses:
            found = "the loss is not finite"
        elif math.isfinite(norm) or (trainer.scaler is not None and scale >= SMALLEST_SCALE):
            self._warn_of_spike(trainer, report.step, norm, losses)
            return
        elif trainer.scaler is not None:
            found = f"the gradient overflows float16 even at a loss scale of {scale:g}, and every step is skipped"
        else:
            found = "the loss is finite but its gradient is not"
        try:
            rows = f"are in {write_rows(trainer, report.step, self.row_numbers, losses)}"
        except OSError as error:
            rows = f"could not be written ({error.strerror})"
        raise TrainingError(
            where=f"optimizer step {report.step}",
            found=f"{found}. The rows of this step and their losses {rows}; its update was not applied",
            fix=suggest_fix(str(trainer.precision), report),
        )

    def _warn_of_spike(self, trainer: Trainer, step: int, norm: float, losses: list[float]) -> None:
        median = statistics.median(self.norms) if len(self.norms) >= MIN_STEPS else math.inf
        if not math.isfinite(norm):
            return
        self.norms.append(norm)
        if norm > SPIKE_FACTOR * median and trainer.is_global_zero:
            source = trainer.datamodule  # type: ignore[attr-defined]
            rows = self.row_numbers[losses.index(max(losses))]
            places = [source.place(row) if isinstance(source, BatchSource) else str(row) for row in rows[:SHOWN_ROWS]]
            log.warning(
                "optimizer step %d: gradient norm %.3g, %.0f times the median. The largest loss%s is in %s%s. Training "
                "continues",
                *(step, norm, norm / median, " on this rank" if trainer.world_size > 1 else ""),
                *(", ".join(places), f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""),
            )


def suggest_fix(precision: str, report: StepReport) -> str:
    """A sentence with the settings to change or the rows to check."""
    if report.step == 1:
        return (
            "At the first step the adapter is still zero, so the rows or the base are the cause: check the rows with "
            "kyon-pl preview, and try trainer.precision bf16-mixed or 32-true"
        )
    rate = (
        f"lower model.optimizer.init_args.lr to a third (the rate was {report.learning_rate:.2g} at this step), or "
        "raise model.schedule.init_args.warmup_steps"
    )
    if precision == "16-mixed":
        return f"Set trainer.precision to bf16-mixed on a GPU from Ampere on, where this does not happen; or {rate}"
    return f"Check the rows; if they are correct, {rate}"


def write_rows(trainer: Trainer, step: int, row_numbers: list[tuple[int, ...]], losses: list[float]) -> Path:
    """Write the rows of a step into the run folder, one JSON line per row; each rank writes its own file.

    Args:
        trainer: gives run folder and data module.
        step: number of the step.
        row_numbers: row numbers of each micro-batch of this rank.
        losses: loss of each micro-batch, as its share of the step's loss.

    Returns:
        The file.
    """
    source = trainer.datamodule  # type: ignore[attr-defined]
    rank = f"-rank={trainer.global_rank}" if trainer.world_size > 1 else ""
    file = Path(trainer.log_dir or trainer.default_root_dir) / f"not_finite-step={step}{rank}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "micro_batch": place,
            "loss": loss if math.isfinite(loss) else str(loss),  # JSON has no NaN or infinity
            "row": row,
            "place": source.place(row) if isinstance(source, BatchSource) else None,
        }
        for place, (rows, loss) in enumerate(zip(row_numbers, losses, strict=True))
        for row in rows
    ]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file
