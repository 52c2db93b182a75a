"""Which run a command goes on with, and what tells runs apart."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from kyon_pl.errors import CheckpointError, MachineError, MissingFileError
from kyon_pl.runs.checkpoint_io import AdapterCheckpointIO
from kyon_pl.runs.fingerprint import differences, fingerprint_of_base, fingerprint_of_settings
from kyon_pl.runs.integrity import check_checksums, check_resumable_state, checksums
from kyon_pl.runs.resume import (
    RECORD,
    Start,
    create_run,
    find_resumable_run,
    next_version,
    read_run,
    refuse_running,
    start_from_checkpoint,
    write_record,
)

SETTINGS = {"trainer.max_epochs": "2", "seed_everything": "1"}
EVERYTHING = SETTINGS | {"data: train rows": "800"}


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(logger=TensorBoardLogger(tmp_path, "logs"), accelerator="cpu", enable_progress_bar=False)


def run(trainer: Trainer, number: int, steps: list[int], finished: int | None = None, **changed: str) -> Path:
    """A run folder with checkpoints of those steps."""
    folder = Path(trainer.default_root_dir) if not trainer.loggers else Path(trainer.loggers[0].root_dir)
    folder = folder / f"version_{number}"
    write_record(folder, EVERYTHING | {key.replace("__", "."): value for key, value in changed.items()}, finished)
    for step in steps:
        checkpoint = {"global_step": step, "state_dict": {}, "optimizer_states": []}
        AdapterCheckpointIO(write_nothing, "").save_checkpoint(checkpoint, folder / f"checkpoints/step={step}.ckpt")
    return folder


def write_nothing(state: object, folder: Path) -> None:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"")


def resumable(trainer: Trainer, **changed: str) -> Start:
    now = {key.replace("__", "."): value for key, value in changed.items()}
    return find_resumable_run(trainer, SETTINGS | now, lambda: EVERYTHING | now)


def test_goes_on_with_the_newest_run_of_these_settings(trainer: Trainer) -> None:
    run(trainer, 2, [9])
    newest = run(trainer, 10, [9, 10])
    run(trainer, 11, [50], seed_everything="2")
    assert resumable(trainer) == Start(newest, newest / "checkpoints/step=10.ckpt")


def test_goes_on_from_the_beginning_where_nothing_was_saved(trainer: Trainer) -> None:
    assert resumable(trainer) == Start()
    assert resumable(trainer).folder is None
    folder = run(trainer, 0, [])
    assert resumable(trainer) == Start(folder, None)


def test_finished_run(trainer: Trainer) -> None:
    folder = run(trainer, 0, [10], finished=10)
    assert resumable(trainer) == Start(folder, folder / "checkpoints/step=10.ckpt", finished=True)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"trainer__max_epochs": "3"}, "trainer.max_epochs: 2 → 3"),
        ({"data: train rows": "801"}, "data: train rows: 800 → 801"),
    ],
)
def test_changed_setting_starts_a_new_run_and_is_named(
    trainer: Trainer, changed: dict[str, str], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(trainer, 0, [10])
    logging.getLogger("kyon_pl").propagate = True
    with caplog.at_level(logging.INFO, "kyon_pl"):
        assert resumable(trainer, **changed) == Start()
    assert f"starting a new run: settings differ from version_0 ({named})" in caplog.text


def test_unreadable_record_is_named(trainer: Trainer) -> None:
    (run(trainer, 0, []) / RECORD).write_text("{")
    with pytest.raises(CheckpointError, match=RECORD):
        resumable(trainer)


def test_a_logger_that_would_delete_its_curves_is_not_gone_on_with(tmp_path: Path) -> None:
    trainer = Trainer(logger=CSVLogger(tmp_path, "logs"), accelerator="cpu", enable_progress_bar=False)
    run(trainer, 0, [10])
    assert resumable(trainer) == Start()


def test_last_is_the_newest_checkpoint_of_the_newest_run_that_has_one(trainer: Trainer, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="--ckpt_path last"):
        start_from_checkpoint("last", trainer)
    folder = run(trainer, 0, [9, 10])
    run(trainer, 1, [])
    assert start_from_checkpoint("last", trainer) == Start(folder, folder / "checkpoints/step=10.ckpt")
    older = folder / "checkpoints/step=9.ckpt"
    assert start_from_checkpoint(str(older), trainer) == Start(None, older), (
        "its later checkpoints are not to be overwritten"
    )
    with pytest.raises(MissingFileError, match="step=8"):
        start_from_checkpoint(str(folder / "checkpoints/step=8.ckpt"), trainer)


def test_record_survives_a_round_trip(tmp_path: Path) -> None:
    write_record(tmp_path / "run", EVERYTHING, 7)
    assert (read_run(tmp_path / "run").fingerprint, read_run(tmp_path / "run").finished_at_step) == (EVERYTHING, 7)
    assert json.loads((tmp_path / "run" / RECORD).read_text())["finished_at_step"] == 7


def test_fingerprint_holds_what_the_result_depends_on() -> None:
    step_checkpoint = {"class_path": "kyon_pl.training.callbacks.StepCheckpoint", "init_args": {"every_n_steps": 1}}
    stopping = {"class_path": "EarlyStopping"}
    settings = {
        "seed_everything": 1,
        "auto_resume": True,
        "trainer": {"max_epochs": 2, "devices": 4, "callbacks": [step_checkpoint, stopping], "logger": {"a": {"b": 1}}},
        "model": {"optimizer": {"init_args": {"lr": 0.1}}, "max_new_tokens": 5},
        "data": {"source": ["a", "b"], "workers": 3, "processes": None, "cache_dir": "c"},
    }
    assert fingerprint_of_settings(settings) == {
        "seed_everything": "1",
        "trainer.max_epochs": "2",
        "trainer.callbacks": json.dumps([stopping]),
        "model.optimizer.init_args.lr": "0.1",
        "data.source": '["a", "b"]',
    }


def test_a_base_of_other_weights_is_another(tmp_path: Path) -> None:
    """Of the same size, and larger than what is read of it."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(40_000_000))
    before = fingerprint_of_base(tmp_path)
    weights.write_bytes(b"\1" * 40_000_000)
    assert differences(before, fingerprint_of_base(tmp_path))[0].startswith("base: model.safetensors: 40,000,000")


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("optimizer_states", 0, "state", 1), None, "optimizer_states.0.state.1.exp_avg: it is missing"),
        (("lr_schedulers", 0, "last_epoch"), 3, "lr_schedulers.0.last_epoch: it is not what was saved"),
        (("optimizer_states", 0, "more"), 3, "optimizer_states.0.more: it was not in the checkpoint"),
        (("state_dict", "lora_B"), torch.tensor([-0.0]), "state_dict.lora_B: it is not what was saved"),
    ],
)
def test_contents_are_compared_by_name(place: tuple[str | int, ...], value: object, named: str) -> None:
    checkpoint: dict[str, object] = {
        "state_dict": {"lora_B": torch.tensor([0.0])},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}, 1: {"exp_avg": torch.ones(2)}}}],
        "lr_schedulers": [{"last_epoch": 2}],
    }
    checkpoint["contents"] = checksums(checkpoint)
    check_checksums(checkpoint)
    inner: object = checkpoint
    for key in place[:-1]:
        inner = inner[key]  # type: ignore[index]
    if value is None:
        del inner[place[-1]]  # type: ignore[attr-defined]
    else:
        inner[place[-1]] = value  # type: ignore[index]
    with pytest.raises(CheckpointError, match=named):
        check_checksums(checkpoint)


def test_parts_of_different_steps_are_refused() -> None:
    state: dict[str, object] = {key: {} for key in ("state_dict", "callbacks", "optimizer_states", "contents")}
    state |= {"global_step": 4, "lr_schedulers": [{"last_epoch": 4}], "loops": {"loader": [{"optimizer_step": 2}]}}
    with pytest.raises(CheckpointError, match=r"loops\.loader\.0\.optimizer_step: it is at step 2"):
        check_resumable_state(state)
    del state["lr_schedulers"]
    with pytest.raises(CheckpointError, match="lr_schedulers: it is missing"):
        check_resumable_state(state)


def test_one_process_creates_a_run_folder_and_an_abandoned_one_is_used_again(tmp_path: Path) -> None:
    assert next_version(tmp_path) == tmp_path / "version_0"
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0/run.lock").touch()  # as a command leaves it that was killed while it downloaded
    assert next_version(tmp_path) == tmp_path / "version_0"
    lock = create_run(tmp_path / "version_0", SETTINGS)
    assert lock
    assert create_run(tmp_path / "version_0", SETTINGS) is None
    assert next_version(tmp_path) == tmp_path / "version_1"
    assert [path.name for path in tmp_path.iterdir()] == ["version_0"]
    with pytest.raises(MachineError, match=r"version_0: process \d+ on .* is writing it"):
        refuse_running(tmp_path, SETTINGS)
    refuse_running(tmp_path, SETTINGS | {"seed_everything": "2"})
    lock.release()
    refuse_running(tmp_path, SETTINGS)
