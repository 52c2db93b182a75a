"""The validation loss before the first step: what the end is compared with."""

from __future__ import annotations

import logging

from lightning.pytorch import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)


class FirstValidation(Callback):
    """Logs, at step 0, the validation that Lightning runs before training if `trainer.num_sanity_val_steps` is -1.

    Lightning itself only looks whether it works and throws the numbers away.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it, once a run: a resumed one has said it already."""
        loss = trainer.callback_metrics.get("val/loss")
        if loss is None or trainer.global_step > 0 or trainer.num_sanity_val_steps != float("inf"):
            return
        log.info("val/loss before the first step: %.4f", loss)
        for logger in trainer.loggers:
            logger.log_metrics({"val/loss": loss.item(), "val/perplexity": loss.exp().item()}, step=0)
