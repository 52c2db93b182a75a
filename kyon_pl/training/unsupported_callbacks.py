"""Lightning's callbacks that cannot work with a frozen base and batches that are planned before the run."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)

from kyon_pl.errors import SettingError

_COPIES = "it copies the frozen base into memory and into every checkpoint"
_AVERAGE = "Use kyon_pl.training.callbacks.AdapterAverage, which averages the adapter alone"

UNSUPPORTED: dict[type[Callback], tuple[str, str]] = {
    GradientAccumulationScheduler: (
        "it changes the accumulation between epochs, and the batches of all epochs are planned with one",
        "Remove it, and set trainer.accumulate_grad_batches",
    ),
    BatchSizeFinder: (
        "it enlarges batches that were planned before the run",
        "Set data.tokens_per_batch or data.rows_per_batch: whether the largest batches fit in memory is tried before "
        "the first step",
    ),
    LearningRateFinder: (
        "it trains on batches and a schedule that were planned for the run itself",
        "Set the rate in the optimizer; for LoRA, 1e-4 is usual",
    ),
    SpikeDetection: (
        "it keeps objects in its state, and pickled objects in checkpoints are never read",
        "Use kyon_pl.training.callbacks.FiniteGuard, which warns of spikes; `kyon-pl fit` always has it",
    ),
    StochasticWeightAveraging: (_COPIES, _AVERAGE),
    WeightAveraging: (_COPIES, _AVERAGE),
    ModelPruning: ("it prunes weights of the frozen base", "Remove it; a smaller adapter has a lower lora.r"),
    BaseFinetuning: (
        "it freezes and unfreezes layers, and the trained weights are those of the adapter throughout",
        "Remove it, and name the layers in lora.target_modules",
    ),
}
"""By class, with its subclasses: why it cannot work, and what to do instead."""


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Refuse the callbacks of `UNSUPPORTED`.

    Args:
        callbacks: of a Trainer.

    Raises:
        SettingError: it names the first one, why it cannot work, and what to do instead.
    """
    for callback in callbacks:
        for kind, (reason, fix) in UNSUPPORTED.items():
            if isinstance(callback, kind):
                raise SettingError("trainer.callbacks", f"{type(callback).__name__} cannot be used: {reason}", fix)
