"""Only a checkpoint that was written to its end counts, and of those the one of the highest step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from rigged import fit, rigged_module, write_inputs

from kyon_pl.errors import CheckpointError, SettingError
from kyon_pl.runs.checkpoint_io import AdapterCheckpointIO, remove_unfinished
from kyon_pl.runs.integrity import MARKER, fault_of_checkpoint, newest_checkpoint


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Of a run that has ended at step 4 and is asked to save."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    module = rigged_module(folder)
    return fit(folder, module, [], plugins=[AdapterCheckpointIO(module.write_adapter, "model: {}\n")])


def save(trainer: Trainer, file: Path, step: int) -> None:
    checkpoint = trainer._checkpoint_connector.dump_checkpoint()
    trainer.strategy.save_checkpoint({**checkpoint, "global_step": step}, file)


def test_the_newest_checkpoint_is_the_whole_one_of_the_highest_recorded_step(trainer: Trainer, tmp_path: Path) -> None:
    """Whatever the names say: `last-v1` is newer than `last`, and 10 than 9."""
    for name, step in {"a": 9, "b": 10, "c": 8, "step=7": 11, "step=99": 12}.items():
        save(trainer, tmp_path / f"{name}.ckpt", step)
    assert newest_checkpoint(tmp_path, resumable=True) == tmp_path / "step=99.ckpt"
    (tmp_path / "step=99" / MARKER).unlink()
    assert newest_checkpoint(tmp_path, resumable=True) == tmp_path / "step=7.ckpt"
    whole = (tmp_path / "step=7.ckpt").read_bytes()
    (tmp_path / "step=7.ckpt").write_bytes(whole[:-1])
    assert newest_checkpoint(tmp_path, resumable=True) == tmp_path / "b.ckpt"
    (tmp_path / "b.ckpt").write_bytes(bytes(len(whole)))
    assert newest_checkpoint(tmp_path, resumable=True) == tmp_path / "a.ckpt"
    shutil.rmtree(tmp_path / "a")
    assert newest_checkpoint(tmp_path, resumable=True) == tmp_path / "c.ckpt"


def test_objects_that_would_never_be_read_are_not_written(trainer: Trainer, tmp_path: Path) -> None:
    checkpoint = trainer._checkpoint_connector.dump_checkpoint()
    with pytest.raises(SettingError, match=r"checkpoint state callbacks\.mine: it is an object of another kind"):
        trainer.strategy.save_checkpoint(checkpoint | {"callbacks": {"mine": Path("x")}}, tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_save_that_dies_leaves_the_checkpoint_of_that_name(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "best.ckpt"
    save(trainer, file, 4)

    def die(checkpoint: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        save(trainer, file, 5)
    assert fault_of_checkpoint(file) is None
    assert newest_checkpoint(tmp_path, resumable=True) == file


class Trap:
    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (Path("sprung"),)


def test_a_removal_that_dies_is_finished_later(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In between there is no checkpoint of that name, and afterwards nothing of it, the adapter included."""
    file = tmp_path / "step=4.ckpt"
    save(trainer, file, 4)

    def die(folder: Path, ignore_errors: bool) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            trainer.strategy.remove_checkpoint(file)
    assert not file.exists()
    assert file.with_suffix("").is_dir()
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_from_elsewhere_is_not_replaced(trainer: Trainer, tmp_path: Path) -> None:
    """A `dirpath` and a `filename` can name a folder of the user, such as that of a role."""
    (tmp_path / "Bo").mkdir()
    (tmp_path / "Bo/system_prompt.txt").write_text("You are Bo.")
    with pytest.raises(SettingError, match=r"Bo: it has other files \(system_prompt.txt\)"):
        save(trainer, tmp_path / "Bo.ckpt", 4)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["Bo", "Bo/system_prompt.txt"]


def test_a_checkpoint_with_code_is_refused_and_not_run(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "trap": Trap()}, tmp_path / "trap.ckpt")
    with pytest.raises(CheckpointError, match=r"trap\.ckpt: it cannot be read"):
        trainer.strategy.load_checkpoint(tmp_path / "trap.ckpt")
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "trap.ckpt", weights_only=False)  # the trap does work
    assert (tmp_path / "sprung").exists()
