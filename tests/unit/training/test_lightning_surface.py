"""Every callback of Lightning's public list and every option of its Trainer works with us or is refused by name.

`python tests/unit/training/test_lightning_surface.py` prints the tables of docs/library.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script

from rigged import fit, rigged_module, trained, write_inputs

from kyon_pl.errors import SettingError
from kyon_pl.training.callbacks import Randomness

PAGE = Path(__file__).parents[3] / "docs/library.md"
WORKS = "works"


class Bar(of_lightning.ProgressBar):
    """A subclass, as the class is meant to be used."""

    def disable(self) -> None:
        """Part of its interface."""


class Writer(of_lightning.BasePredictionWriter):
    """As above."""


class Finetuning(of_lightning.BaseFinetuning):
    """As above."""


CALLBACKS: dict[str, Callable[[Path], Callback]] = {
    "BackboneFinetuning": lambda folder: of_lightning.BackboneFinetuning(),
    "BaseFinetuning": lambda folder: Finetuning(),
    "BasePredictionWriter": lambda folder: Writer("epoch"),
    "BatchSizeFinder": lambda folder: of_lightning.BatchSizeFinder(),
    "Callback": lambda folder: Callback(),
    "Checkpoint": lambda folder: of_lightning.Checkpoint(),
    "DeviceStatsMonitor": lambda folder: of_lightning.DeviceStatsMonitor(cpu_stats=False),
    "EarlyStopping": lambda folder: of_lightning.EarlyStopping("val/loss", patience=9),
    "GradientAccumulationScheduler": lambda folder: of_lightning.GradientAccumulationScheduler({0: 2}),
    "LambdaCallback": lambda folder: of_lightning.LambdaCallback(on_train_start=lambda *of: None),
    "LearningRateFinder": lambda folder: of_lightning.LearningRateFinder(),
    "LearningRateMonitor": lambda folder: of_lightning.LearningRateMonitor(),
    "ModelCheckpoint": lambda folder: of_lightning.ModelCheckpoint(folder / "best", monitor="val/loss"),
    "ModelPruning": lambda folder: of_lightning.ModelPruning("l1_unstructured"),
    "ModelSummary": lambda folder: of_lightning.ModelSummary(),
    "OnExceptionCheckpoint": lambda folder: of_lightning.OnExceptionCheckpoint(folder / "broken"),
    "ProgressBar": lambda folder: Bar(),
    "RichModelSummary": lambda folder: of_lightning.RichModelSummary(),
    "RichProgressBar": lambda folder: of_lightning.RichProgressBar(),
    "StochasticWeightAveraging": lambda folder: of_lightning.StochasticWeightAveraging(1e-3),
    "SpikeDetection": lambda folder: of_lightning.SpikeDetection(exclude_batches_path=folder / "skip.json"),
    "ThroughputMonitor": lambda folder: of_lightning.ThroughputMonitor(lambda batch: len(batch.row_numbers)),
    "Timer": lambda folder: of_lightning.Timer("00:01:00:00"),
    "TQDMProgressBar": lambda folder: of_lightning.TQDMProgressBar(),
    "EMAWeightAveraging": lambda folder: of_lightning.EMAWeightAveraging(),
    "WeightAveraging": lambda folder: of_lightning.WeightAveraging(),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "accumulate_grad_batches=2": {},
    "barebones=True": {"barebones": True},
    "check_val_every_n_epoch=2": {"check_val_every_n_epoch": 2},
    "detect_anomaly=True": {"detect_anomaly": True},
    "deterministic=True": {"deterministic": True},
    "fast_dev_run=2": {"fast_dev_run": 2},
    "gradient_clip_val=1.0": {"gradient_clip_val": 1.0},
    "inference_mode=False": {"inference_mode": False},
    "limit_train_batches=2": {"limit_train_batches": 2},
    "limit_train_batches=0.5": {"limit_train_batches": 0.5},
    "limit_val_batches=1": {"limit_val_batches": 1},
    "logger=CSVLogger": {"logger": CSVLogger},
    "logger=TensorBoardLogger": {"logger": TensorBoardLogger},
    "logger=False": {},
    "max_steps=3": {"max_steps": 3},
    'max_time="00:01:00:00"': {"max_time": "00:01:00:00"},
    "max_epochs=-1 without max_steps": {"epochs": -1},
    "num_sanity_val_steps=-1": {"num_sanity_val_steps": -1},
    "overfit_batches=2": {"overfit_batches": 2},
    'profiler="simple"': {"profiler": "simple"},
    "reload_dataloaders_every_n_epochs=1": {"reload_dataloaders_every_n_epochs": 1},
    "use_distributed_sampler=True": {"use_distributed_sampler": True},
    "val_check_interval=2": {"val_check_interval": 2},
    "val_check_interval=1.0": {"val_check_interval": 1.0},
}


class SaveAt(Callback):
    """Saves after the second optimizer step of a run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save once."""
        if trainer.global_step == 2 and not self.file.exists():
            trainer.save_checkpoint(self.file)


def result_of_callback(name: str, folder: Path) -> str:
    """`works`: a run that is resumed has the weights of one that was not disturbed; else why it is refused."""
    found = []
    for start in (None, folder / "saved.ckpt"):
        module = rigged_module(folder)
        made = [Randomness(1), CALLBACKS[name](folder), SaveAt(folder / "saved.ckpt")]
        settings = {
            "enable_progress_bar": isinstance(made[1], of_lightning.ProgressBar),
            "enable_checkpointing": isinstance(made[1], of_lightning.Checkpoint),
            "log_every_n_steps": 1,
            "logger": CSVLogger(folder / "logs"),
        }
        try:
            fit(folder, module, made, ckpt_path=start, **settings)
        except SettingError as error:
            if f"{type(made[1]).__name__} cannot be used" not in error.found:
                raise
            return f"refused: {error.found.partition(': ')[2]}. {error.fix}"
        found.append(trained(module))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    return WORKS


def result_of_option(name: str, folder: Path) -> str:
    """`works`: it trains, validates and saves; else why it is refused."""
    settings = dict(OPTIONS[name])
    if "logger" in settings:
        settings["logger"] = settings["logger"](folder / "logs")
    module = rigged_module(folder)
    try:
        trainer = fit(folder, module, [], **settings)
    except SettingError as error:
        return f"refused: {error.where}: {error.found}. {error.fix.removesuffix('.')}"
    assert 1 <= trainer.global_step <= 4
    assert all(value.abs().sum() > 0 for key, value in trained(module).items() if "lora_B" in key)
    return WORKS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    return tmp_path


def row(name: str, result: str) -> str:
    """Of a table."""
    return f"| `{name}` | {result} |"


def test_the_list_of_callbacks_is_lightning_s() -> None:
    assert CALLBACKS.keys() == set(of_lightning.__all__)


@pytest.mark.parametrize("name", CALLBACKS)
def test_callback(name: str, folder: Path) -> None:
    assert row(name, result_of_callback(name, folder)) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", OPTIONS)
def test_option(name: str, folder: Path) -> None:
    assert row(name, result_of_option(name, folder)) in PAGE.read_text(encoding="utf-8").splitlines()


def main() -> None:
    """Print the tables."""
    for names, result in ((CALLBACKS, result_of_callback), (OPTIONS, result_of_option)):
        for name in sorted(names, key=str.lower):
            with tempfile.TemporaryDirectory() as place:
                write_inputs(Path(place))
                try:
                    print(row(name, result(name, Path(place))), flush=True)
                except Exception as error:
                    print(row(name, f"FAILS {type(error).__name__}: {error}"), flush=True)


if __name__ == "__main__":
    main()
