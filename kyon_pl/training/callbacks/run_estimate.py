"""What a run will take, said before the base loads."""

from __future__ import annotations

import logging
import time

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kyon_pl.batch import Workload
from kyon_pl.lora import checkpointed_layers, frozen_dtype
from kyon_pl.training.module import ChatGLM2LoRA

log = logging.getLogger(__name__)

# share of the measured matrix-product rate that a LoRA step reaches; measured values lie between 0.3 and 0.65
USUAL_SHARE = 0.4


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
        # LoRA: forward 2, input gradients 2, and 2 more where the forward is computed again; the frozen weights need
        # no gradient
        share = checkpointed_layers(pl_module.checkpointing, config.num_layers) / config.num_layers
        flop = (4 + 2 * share) * config.parameter_count * tokens
        flop_per_s = matrix_rate(trainer.strategy.root_device, frozen_dtype(str(trainer.precision)))
        each = f" on each of {trainer.world_size} devices" if trainer.world_size > 1 else ""
        log.info(
            "estimate: %s optimizer steps, %s tokens%s, about %s (%.0f %% of the matrix products measured here, %s)",
            f"{steps:,}",
            f"{tokens:,.0f}",
            each,
            duration(flop / (flop_per_s * USUAL_SHARE)),
            USUAL_SHARE * 100,
            f"{flop_per_s / 1e12:,.0f} TFLOP/s" if flop_per_s > 1e13 else f"{flop_per_s / 1e9:,.0f} GFLOP/s",
        )


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product on this device, measured in a fraction of a second."""
    size = 4096 if device.type == "cuda" else 512
    own = torch.Generator(device).manual_seed(0)  # the run's random numbers are not to depend on this
    a = torch.randn(size, size, device=device, dtype=dtype, generator=own)
    for _ in range(2):
        a @ a
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started_s = time.perf_counter()
    repeats = 10
    for _ in range(repeats):
        a @ a
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return repeats * 2 * size**3 / (time.perf_counter() - started_s)


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
