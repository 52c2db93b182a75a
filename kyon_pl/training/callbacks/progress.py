"""The progress bar."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from kyon_pl.training.callbacks.step_metrics import StepMetrics


class Progress(TQDMProgressBar):
    """Lightning's bar, with the numbers of the last log entry.

    Numbers that are logged with `prog_bar=True` live on the device, and showing them makes the host wait for it at
    every micro-batch; these are plain ones.
    """

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepMetrics):
                metrics.update(callback.shown)
        return metrics
