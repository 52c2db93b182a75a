"""The window of the metrics of a step is saved at any time, also before training starts."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rigged import fit, rigged_module, write_inputs

from kyon_pl.training.callbacks import StepMetrics


class SavesEarly(Callback):
    """Saves a checkpoint before training starts, as Lightning's finders do."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "early.ckpt")


def test_a_checkpoint_before_training_has_the_window_that_was_loaded(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    metrics = StepMetrics()
    metrics.saved = [2.0, 3.0, 1.0, 1.0, 4.0, 3.0, 1.0]
    fit(tmp_path, rigged_module(tmp_path), [metrics, SavesEarly()], epochs=1)
    saved = torch.load(tmp_path / "run/early.ckpt", weights_only=False)["callbacks"][metrics.state_key]
    assert saved["open_windows"].tolist() == [[2.0, 3.0, 1.0, 1.0, 4.0, 3.0, 1.0]]
