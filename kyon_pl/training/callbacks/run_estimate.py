"""What a run will take, said before the base loads."""

from __future__ import annotations

import logging

from lightning.pytorch import Callback, LightningModule, Trainer

from kyon_pl.batch import Workload
from kyon_pl.lora import frozen_dtype
from kyon_pl.training.flop import USUAL_SHARE, flop_per_token, matrix_rate, rate_in_words, recomputed_share
from kyon_pl.training.module import ChatGLM2LoRA

log = logging.getLogger(__name__)


class RunEstimate(Callback):
    """Logs the optimizer steps of the run and about how long they will take on this device."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say it; the data are there by now and the base is not."""
        workload = trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit" or not trainer.is_global_zero or not isinstance(workload, Workload):
            return
        assert isinstance(pl_module, ChatGLM2LoRA)
        steps = pl_module.total_steps
        tokens = workload.tokens_per_epoch * steps / workload.steps_per_epoch / trainer.world_size
        config = pl_module.base_config
        recomputed = recomputed_share(pl_module.checkpointing, config)
        # attention is left out: with rows of 500 tokens it is one per cent of 6B's
        flop = tokens * flop_per_token(config, row_tokens=0, recomputed=recomputed)
        flop_per_s = matrix_rate(trainer.strategy.root_device, frozen_dtype(str(trainer.precision)))
        each = f" on each of {trainer.world_size} devices" if trainer.world_size > 1 else ""
        log.info(
            "estimate: %s optimizer steps, %s tokens%s, about %s (%.0f %% of the matrix products measured here, %s)",
            f"{steps:,}",
            f"{tokens:,.0f}",
            each,
            duration(flop / (flop_per_s * USUAL_SHARE)),
            USUAL_SHARE * 100,
            rate_in_words(flop_per_s),
        )


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
