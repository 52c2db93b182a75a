"""Stops a run at the first number that is not finite, warns of a spike, and says which rows they came from."""

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

log = logging.getLogger(__name__)

# Norms of gradients lie within a factor of three or so of their median; the first steps say too little of it.
SPIKE, MEDIAN_OF, LEAST_STEPS = 10.0, 50, 20
SHOWN_ROWS = 3

# A gradient scaler begins at 65536 and halves at every skip. Below 1 it is no longer gradients scaled too high that
# overflow float16, but the gradients themselves.
SMALLEST_SCALE = 1.0


@dataclass
class StepReport:
    """What one optimizer step has to say of itself.

    Attributes:
        step: its number, from 1.
        learning_rate: of this step.
        values: (micro-batches + 3,) float32 on the CPU, perhaps still on its way there: the micro-batches' losses; how
            many of them are not finite, over all ranks; the gradient's norm; the scale, 1 without a scaler.
        arrived: on a GPU, when `values` has come.
    """

    step: int
    learning_rate: float
    values: torch.Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> tuple[list[float], float, float, float]:
        """Losses of this rank, unscaled; bad losses of all ranks; norm; scale."""
        if self.arrived is not None:
            self.arrived.synchronize()
        *losses, bad_losses, norm, scale = self.values.tolist()
        return [loss / scale for loss in losses], bad_losses, norm, scale


class FiniteGuard(Callback):
    """Looks at every loss and every gradient, once an optimizer step.

    Losses are kept on the device until the step is whole; then one small tensor comes to the host. With a gradient
    scaler, which waits for the device itself, it is read after that and costs no further wait; without one it is read
    before the optimizer moves any weight.

    With a scaler, a gradient that is not finite is an ordinary thing as long as the loss is: the scaler skips the step
    and halves its scale.

    A gradient many times as large as usual is said, with the rows of the largest loss, and the run goes on: clipping
    holds it, but rows that do this again and again are worth a look. This costs no further look at the device.
    """

    def __init__(self) -> None:
        self.row_numbers: list[tuple[int, ...]] = []
        self.losses: list[torch.Tensor] = []
        self.report: StepReport | None = None
        self.norms: deque[float] = deque(maxlen=MEDIAN_OF)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Remember whose rows come."""
        self.row_numbers.append(batch.row_numbers)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Keep the loss where it is; a scaler has scaled it by now."""
        self.losses.append(loss.detach().float())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Send this step's numbers to the host, and without a scaler judge them.

        Raises:
            TrainingError: a loss or a gradient that is not finite.
        """
        losses = torch.stack(self.losses)
        bad_losses = (~losses.isfinite()).sum().float()
        if trainer.world_size > 1:
            dist.all_reduce(bad_losses)  # Lightning's own reduce waits for all ranks at a barrier first
        norm = gradient_norm(optimizer).to(losses)
        scale = losses.new_ones(()) if trainer.scaler is None else trainer.scaler.scale(losses.new_ones(()))
        values = torch.cat([losses, torch.stack([bad_losses, norm, scale])]).to("cpu", non_blocking=True)
        arrived = torch.cuda.current_stream(losses.device).record_event() if losses.is_cuda else None
        rate = float(optimizer.param_groups[0]["lr"])
        self.report = StepReport(trainer.global_step + 1, rate, values, arrived)
        if trainer.scaler is None:
            self._judge(trainer, self.report)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """Where there is a scaler, judge the step that it has just taken or skipped.

        Raises:
            TrainingError: a loss that is not finite, or a scale that has fallen too far.
        """
        if self.report is None:
            return
        if trainer.scaler is not None:
            self._judge(trainer, self.report)
        self.row_numbers, self.losses, self.report = [], [], None

    def _judge(self, trainer: Trainer, report: StepReport) -> None:
        losses, bad_losses, norm, scale = report.read()
        if bad_losses:
            found = "the loss is not finite"
        elif math.isfinite(norm) or (trainer.scaler is not None and scale >= SMALLEST_SCALE):
            self._watch(trainer, report.step, norm, losses)
            return
        elif trainer.scaler is not None:
            found = f"the gradient overflows float16 even at a loss scale of {scale:g}, and every step is skipped"
        else:
            found = "the loss is finite and its gradient is not"
        file = write_rows(trainer, report.step, self.row_numbers, losses)
        raise TrainingError(
            where=f"optimizer step {report.step}",
            found=f"{found}. The rows of this step and their losses are in {file}; the weights are those before it",
            fix=fix(str(trainer.precision), report),
        )

    def _watch(self, trainer: Trainer, step: int, norm: float, losses: list[float]) -> None:
        usual = statistics.median(self.norms) if len(self.norms) >= LEAST_STEPS else math.inf
        if math.isfinite(norm):
            self.norms.append(norm)
            if norm > SPIKE * usual and trainer.is_global_zero:
                source = trainer.datamodule  # type: ignore[attr-defined]
                rows = self.row_numbers[losses.index(max(losses))]
                named = [
                    source.place(row) if isinstance(source, BatchSource) else str(row) for row in rows[:SHOWN_ROWS]
                ]
                log.warning(
                    "optimizer step %d: a gradient of norm %.3g, %.0f times the usual. The largest loss%s is that of "
                    "%s%s. The run goes on",
                    *(step, norm, norm / usual, " on this rank" if trainer.world_size > 1 else ""),
                    *(", ".join(named), f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""),
                )


def gradient_norm(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """The norm over all gradients, before clipping; not finite if one of them is not."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def fix(precision: str, report: StepReport) -> str:
    """What to do about it."""
    if report.step == 1:
        return (
            "At the first step the adapter is still zero, so it is the rows or the base: look at the rows with kyon-pl "
            "preview, and try trainer.precision bf16-mixed or 32-true"
        )
    rate = (
        f"lower model.optimizer.init_args.lr to a third (the rate was {report.learning_rate:.2g} at this step), or "
        "raise model.schedule.init_args.warmup_steps"
    )
    if precision == "16-mixed":
        return f"Set trainer.precision to bf16-mixed on a newer GPU (Ampere on), where this does not happen; or {rate}"
    return f"Look at the rows; if they are as they should be, {rate}"


def write_rows(trainer: Trainer, step: int, row_numbers: list[tuple[int, ...]], losses: list[float]) -> Path:
    """Write the rows of a step into the run folder, a line each; every rank its own file.

    Args:
        trainer: knows run folder and data.
        step: its number.
        row_numbers: of each micro-batch of this rank.
        losses: what each of them contributes to the loss of the step.

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
            "loss": loss if math.isfinite(loss) else str(loss),  # JSON has no word for it
            "row": row,
            "place": source.place(row) if isinstance(source, BatchSource) else None,
        }
        for place, (rows, loss) in enumerate(zip(row_numbers, losses, strict=True))
        for row in rows
    ]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file
