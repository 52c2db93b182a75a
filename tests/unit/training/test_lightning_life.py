"""The classes under a plain Trainer, without the command line: resume, load, changes of the plan, callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.tuner import Tuner
from peft import PeftModel
from rigged import fit, rigged_module, trained, write_inputs

from kyon_pl import ChatGLM2LoRA, DialogueDataModule
from kyon_pl.demo import BASE
from kyon_pl.errors import CheckpointError, SettingError, TrainingError
from kyon_pl.training.callbacks import AdapterAverage, Randomness
from kyon_pl.training.unsupported_callbacks import UNSUPPORTED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    return tmp_path


class SaveAt(Callback):
    """Saves `FOLDER/STEP.ckpt` after an optimizer step."""

    def __init__(self, folder: Path, step: int) -> None:
        self.file, self.step = folder / f"{step}.ckpt", step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not self.file.exists():
            trainer.save_checkpoint(self.file)


class Change(Callback):
    """Changes something when training starts."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.change(trainer)


def states(file: Path) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return saved


@pytest.mark.parametrize("average", [False, True])
def test_a_plain_trainer_resumes_its_own_checkpoint_to_the_same_bytes(folder: Path, average: bool) -> None:
    def run(**more: Any) -> tuple[dict[str, torch.Tensor], Path]:
        module, place = rigged_module(folder), folder / str(len(list(folder.iterdir())))
        callbacks = [Randomness(3), SaveAt(place, 3), SaveAt(place, 4), *([AdapterAverage(0.5)] if average else [])]
        fit(folder, module, callbacks, **more)
        return trained(module), place

    whole, place = run()
    resumed, again = run(ckpt_path=place / "3.ckpt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    if average:  # the checkpoints hold the average, and what is trained besides
        both = torch.load(place / "4.ckpt", weights_only=True), torch.load(again / "4.ckpt", weights_only=True)
        live, live_again = (state["callbacks"]["AdapterAverage"]["trained"] for state in both)
        assert all(torch.equal(live[name], live_again[name]) for name in live)
        assert all(torch.equal(both[0]["state_dict"][name], whole[name]) for name in whole)
        assert any(not torch.equal(live[name], whole[name]) for name in whole)


def test_an_averaged_adapter_is_small_and_plain_peft_loads_it(tmp_path: Path) -> None:
    data = DialogueDataModule("demo", tokenizer="demo", max_tokens=256, tokens_per_batch=512, workers=0, processes=1)
    module = ChatGLM2LoRA(base="demo", checkpointing="none")
    settings = {"enable_progress_bar": False, "logger": False, "limit_val_batches": 1, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_steps=2, callbacks=[AdapterAverage()], **settings)  # type: ignore[arg-type]
    trainer.fit(module, datamodule=data)
    module.save_adapter(tmp_path / "adapter")
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    trained_bytes = sum(value.nbytes for value in trained(module).values())
    assert (tmp_path / "x.ckpt").stat().st_size < 4 * trained_bytes
    base = module.frozen_base.load(torch.float32, torch.device("cpu"), ranks=1)
    loaded = dict(PeftModel.from_pretrained(base, tmp_path / "adapter").named_parameters())
    for name, value in trained(module).items():
        assert torch.equal(loaded[name.removeprefix("model.")], value)

    # the module of the checkpoint, by the name of its base, and with that base from a folder
    for found in ({}, {"base": str(BASE), "max_new_tokens": 7}):
        again = ChatGLM2LoRA.load_from_checkpoint(tmp_path / "x.ckpt", map_location="cpu", **found)
        assert again.frozen_base.name == found.get("base", "demo")
        assert again.max_new_tokens == found.get("max_new_tokens", 256)
        assert {name: value.tolist() for name, value in trained(again).items()} == {
            name: value.tolist() for name, value in trained(module).items()
        }
    values = Trainer(accelerator="cpu", **settings).validate(again, datamodule=data, verbose=False)  # type: ignore[arg-type]
    assert values == Trainer(accelerator="cpu", **settings).validate(module, datamodule=data, verbose=False)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="has loaded its base for 32-true"):
        Trainer(accelerator="cpu", precision="bf16-mixed", **settings).validate(again, datamodule=data)  # type: ignore[arg-type]


def test_a_checkpoint_without_settings_is_refused(folder: Path) -> None:
    torch.save({"state_dict": {}}, folder / "x.ckpt")
    with pytest.raises(CheckpointError, match="no settings to make the module from"):
        ChatGLM2LoRA.load_from_checkpoint(folder / "x.ckpt")


def test_a_checkpoint_without_the_optimizer_says_so(folder: Path) -> None:
    trainer = fit(folder, rigged_module(folder), [])
    trainer.save_checkpoint(folder / "x.ckpt", weights_only=True)
    with pytest.raises(CheckpointError, match="save_weights_only"):
        fit(folder, rigged_module(folder), [], ckpt_path=folder / "x.ckpt")


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        (lambda trainer: setattr(trainer, "accumulate_grad_batches", 4), "trainer.accumulate_grad_batches: 2 when"),
        (lambda trainer: setattr(trainer.fit_loop, "max_batches", 3), "trainer.limit_train_batches: 4 when"),
        (lambda trainer: setattr(trainer.datamodule, "rows_per_batch", 6), "data.rows_per_batch: 3 when"),
        (lambda trainer: setattr(trainer.datamodule, "seed", 6), "data.seed: "),
        (lambda trainer: setattr(trainer.fit_loop, "max_epochs", 9), "length of the run: 4 optimizer steps when"),
        (lambda trainer: setattr(trainer.datamodule.sampler, "world_size", 2), "trainer.devices: 2 when"),
    ],
)
def test_a_change_after_the_plan_stops_the_run_at_its_first_step(folder: Path, change: Any, setting: str) -> None:
    module = rigged_module(folder)
    before = []
    with pytest.raises(SettingError, match=setting):
        fit(folder, module, [Change(lambda trainer: (before.append(trained(module)), change(trainer)))])
    assert all(torch.equal(value, before[0][name]) for name, value in trained(module).items())


def test_loaders_without_their_data_module_are_refused(folder: Path) -> None:
    """No one would tell them the epoch: each would repeat the first."""
    data = DialogueDataModule(str(folder / "rows.jsonl"), rows_per_batch=3, max_tokens=32, workers=0, processes=1)
    data.setup("fit")
    trainer = Trainer(accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, barebones=False)
    with pytest.raises(SettingError, match="Pass datamodule= instead"):
        trainer.fit(rigged_module(folder), train_dataloaders=data.train_dataloader())


class Finetuning(of_lightning.BaseFinetuning):
    """A subclass, as the class is meant to be used."""


MADE: dict[type[Callback], Any] = {
    of_lightning.GradientAccumulationScheduler: lambda: of_lightning.GradientAccumulationScheduler({0: 4}),
    of_lightning.BatchSizeFinder: of_lightning.BatchSizeFinder,
    of_lightning.LearningRateFinder: of_lightning.LearningRateFinder,
    of_lightning.StochasticWeightAveraging: lambda: of_lightning.StochasticWeightAveraging(1e-3),
    of_lightning.WeightAveraging: of_lightning.EMAWeightAveraging,
    of_lightning.ModelPruning: lambda: of_lightning.ModelPruning("l1_unstructured"),
    of_lightning.BaseFinetuning: Finetuning,
    of_lightning.SpikeDetection: of_lightning.SpikeDetection,
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_callbacks_that_cannot_work_are_refused_by_name(folder: Path, kind: type[Callback]) -> None:
    callback = MADE[kind]()
    module = rigged_module(folder)
    with pytest.raises(SettingError, match=f"{type(callback).__name__} cannot be used: it "):
        fit(folder, module, [callback])
    assert module.model is None  # before the base is loaded


def test_the_tuner_is_refused_by_name(folder: Path) -> None:
    data = DialogueDataModule(str(folder / "rows.jsonl"), rows_per_batch=3, max_tokens=32, workers=0, processes=1)
    for tune in (Tuner.lr_find, Tuner.scale_batch_size):
        trainer = Trainer(accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False)
        with pytest.raises(SettingError, match="Finder cannot be used"):
            tune(Tuner(trainer), rigged_module(folder), datamodule=data)


class Adds(Callback):
    """Adds something to each checkpoint."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["more"] = {"of": self.value}


def test_a_checkpoint_that_is_too_large_is_not_written(folder: Path) -> None:
    with pytest.raises(TrainingError, match=r"checkpoint state more: 2,000,000 bytes, and the trained weights have"):
        fit(folder, rigged_module(folder), [Adds(torch.zeros(500_000)), SaveAt(folder, 2)])
    assert not (folder / "2.ckpt").exists()
