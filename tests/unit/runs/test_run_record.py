"""What a run folder says: curves without seams, checkpoints that know no absolute path, nothing left behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from rigged import fit, rigged_module, write_inputs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kyon_pl.errors import SettingError
from kyon_pl.runs.checkpoint_io import AdapterCheckpointIO, read_checkpoint
from kyon_pl.runs.curves import event_files
from kyon_pl.runs.resume import read_run
from kyon_pl.training.callbacks import FirstValidation, RunRecord, StepCheckpoint, StepMetrics


class KilledError(Exception):
    pass


class KillAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise KilledError


def train(inputs: Path, logs: Path, *more: Callback, every_n_steps: int = 100, **settings: Any) -> Trainer:
    """Two epochs of two steps in `logs/version_0`, every step logged, validated at the end of each epoch."""
    module = rigged_module(inputs)
    best = ModelCheckpoint(filename="best-{step}", monitor="val/loss", save_on_train_epoch_end=False)
    steps = StepCheckpoint(every_n_steps=every_n_steps)
    callbacks = [RunRecord(lambda: {"a": "b"}), StepMetrics(), FirstValidation(), *more, best, steps]
    settings = {
        "logger": TensorBoardLogger(logs, "", version="version_0"),
        "plugins": [AdapterCheckpointIO(module.write_adapter, "a: b")],
        "enable_checkpointing": True,
        "num_sanity_val_steps": -1,
        "log_every_n_steps": 1,
    } | settings
    return fit(inputs, module, callbacks, **settings)


def curve(run: Path, tag: str) -> list[tuple[int, float]]:
    """As TensorBoard draws it; its files of one process and second have other names, for it sorts these as texts."""
    with TemporaryDirectory() as folder:
        for number, file in enumerate(event_files(run)):
            shutil.copy(file, Path(folder) / f"events.out.tfevents.{number:04}")
        return [(event.step, event.value) for event in EventAccumulator(folder).Reload().Scalars(tag)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("undisturbed")
    train(inputs, logs)
    return logs / "version_0"


@pytest.mark.parametrize(("killed_at", "saved"), [(1, []), (3, ["best-step=2"])])
def test_curves_have_no_seam(killed_at: int, saved: list[str], inputs: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Neither where the run starts again from a checkpoint nor where it does from its beginning."""
    with pytest.raises(KilledError):
        train(inputs, tmp_path, KillAt(killed_at))
    run = tmp_path / "version_0"
    assert [file.stem for file in run.rglob("*.ckpt")] == saved
    trainer = train(inputs, tmp_path, ckpt_path=next(run.rglob("*.ckpt"), None))
    assert trainer.global_step == 4
    for tag in ("train/loss", "val/loss", "train/learning_rate"):
        assert [step for step, _ in curve(run, tag)] == [step for step, _ in curve(undisturbed, tag)], tag
    assert [step for step, _ in curve(run, "val/loss")] == [0, 2, 4]
    assert read_run(run).finished_at_step == 4


def test_a_moved_run_goes_on_with_its_best_checkpoint(inputs: Path, undisturbed: Path, tmp_path: Path) -> None:
    """And what the best checkpoint before it had not removed yet is removed; a file of a person's is not."""
    with pytest.raises(KilledError):
        train(inputs, tmp_path / "here", KillAt(3), every_n_steps=1)
    old = tmp_path / "here/version_0/checkpoints"
    state = read_checkpoint(old / "best-step=2.ckpt")["callbacks"]
    (best,) = (value for key, value in state.items() if key.startswith("ModelCheckpoint"))
    assert best["best_model_path"] == "best-step=2.ckpt"
    assert list(best["best_k_models"]) == ["best-step=2.ckpt"]
    run = tmp_path / "there/version_0"
    shutil.copytree(tmp_path / "here/version_0", run)
    for suffix in (".ckpt", ""):
        source, kept = run / f"checkpoints/best-step=2{suffix}", run / f"checkpoints/mine{suffix}"
        shutil.copytree(source, kept) if source.is_dir() else shutil.copy(source, kept)
    shutil.rmtree(tmp_path / "here")
    train(inputs, tmp_path / "there", every_n_steps=1, ckpt_path=run / "checkpoints/step=3.ckpt")
    assert {file.stem for file in run.rglob("*.ckpt")} - {"mine"} == {file.stem for file in undisturbed.rglob("*.ckpt")}
    assert (run / "checkpoints/mine.ckpt").is_file()


def test_what_a_best_checkpoint_had_yet_to_remove_is_removed(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(inputs, tmp_path, KillAt(3))
    old = tmp_path / "version_0/checkpoints/best-step=2"
    shutil.copytree(old, tmp_path / "kept")
    shutil.copy(old.with_suffix(".ckpt"), tmp_path / "kept.ckpt")
    train(inputs, tmp_path, ckpt_path=old.with_suffix(".ckpt"))
    assert not old.exists()
    shutil.copytree(tmp_path / "kept", old)
    shutil.copy(tmp_path / "kept.ckpt", old.with_suffix(".ckpt"))
    train(inputs, tmp_path, ckpt_path=tmp_path / "version_0/checkpoints/best-step=4.ckpt")
    assert not old.with_suffix(".ckpt").exists()


def test_validation_inside_an_accumulation_window_is_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="val_check_interval"):
        train(inputs, tmp_path, val_check_interval=3)
