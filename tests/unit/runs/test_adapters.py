"""Which adapter a word means."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kyon_pl.cli.options import options_of
from kyon_pl.errors import CheckpointError, KyonError, MissingFileError
from kyon_pl.runs.adapters import adapter_base, find_adapter
from kyon_pl.runs.checkpoint_io import AdapterCheckpointIO
from kyon_pl.runs.integrity import ADAPTER, MARKER, fault_of_checkpoint


def write_adapter(state: object, folder: Path) -> None:
    folder.mkdir()
    (folder / ADAPTER).write_bytes(b"weights")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "THUDM/chatglm2-6b"}))


def save(run: Path, name: str, step: int, best: str | None = None) -> Path:
    """A checkpoint as a run writes it; `best`: what its ModelCheckpoint has found best by then."""
    state: dict[str, Any] = {"monitor": "val/loss", "best_model_path": best or "", "best_model_score": None}
    state["best_model_score"] = torch.tensor(0.5) if best else None
    callbacks = {"Timer": [1], "ModelCheckpoint{'monitor': 'val/loss'}": state}
    file = run / "checkpoints" / f"{name}.ckpt"
    AdapterCheckpointIO(write_adapter, "").save_checkpoint(
        {"global_step": step, "state_dict": {}, "callbacks": callbacks}, file
    )
    return file.with_suffix("")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Best at step 9, last at step 10; names that mislead whoever sorts by them; a newer run without a checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("kyon_pl"), "propagate", True)
    run = Path("lightning_logs/version_9")
    save(run, "z-best", 9, "z-best.ckpt")
    save(run, "a", 10, "z-best.ckpt")
    save(Path("lightning_logs/version_2"), "older", 99)
    Path("lightning_logs/version_10/checkpoints").mkdir(parents=True)
    return run


def test_best_and_last_of_a_run_and_of_a_folder_of_runs(run: Path) -> None:
    for word in (str(run), "lightning_logs", None):
        assert find_adapter(word).resolve() == (run / "checkpoints/z-best").resolve()
        assert find_adapter(word, "last").resolve() == (run / "checkpoints/a").resolve()
    assert find_adapter(str(run.resolve())) == run.resolve() / "checkpoints/z-best"


def test_the_folder_itself_and_the_file_beside_it(run: Path) -> None:
    folder = run / "checkpoints/a"
    assert find_adapter(str(folder)) == find_adapter(f"{folder}.ckpt") == folder
    assert adapter_base(folder) == "THUDM/chatglm2-6b"


def test_a_run_that_moved_still_knows_its_best(run: Path, tmp_path: Path) -> None:
    moved = run.rename(tmp_path / "elsewhere")
    assert find_adapter(str(moved)) == moved / "checkpoints/z-best"


def test_what_is_not_whole_is_skipped_and_said(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (save(run, "b", 11, "b.ckpt") / MARKER).unlink()
    assert find_adapter(str(run), "last").name == "a"
    assert "b.ckpt is skipped" in caplog.text
    (run / "checkpoints/z-best" / ADAPTER).write_bytes(b"altered")
    with pytest.raises(CheckpointError, match=r"z-best.*best by val/loss.*not what was written.*--which last"):
        find_adapter(str(run))
    with pytest.raises(CheckpointError, match=r"z-best\.ckpt: its adapter is not complete"):
        find_adapter(f"{run}/checkpoints/z-best.ckpt")


def test_no_best_is_said_and_not_guessed(run: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no best checkpoint up to older\.ckpt.*--which last"):
        find_adapter("lightning_logs/version_2")
    assert find_adapter("lightning_logs/version_2", "last").name == "older"


def test_without_a_best_one_the_last_is_opened_and_said(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert find_adapter("lightning_logs/version_2", None).name == "older"
        assert "the last of the run, which has no best one" in caplog.text
        assert find_adapter(str(run), None).name == "z-best"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("no/such/folder", "no/such/folder: no such file or folder. Name a PEFT folder"),
        ("step=3.ckpt", "no such checkpoint"),
        ("./nothing", "no such file or folder"),
        ("empty", "not an adapter, a run or a folder of runs"),
        ("lightning_logs/version_10", "it has no complete checkpoint yet"),
    ],
)
def test_what_is_not_there(run: Path, word: str, said: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(MissingFileError) as raised:
        find_adapter(word)
    assert said in str(raised.value)


def test_without_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match="lightning_logs: no such file or folder"):
        find_adapter(None)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_that_names_no_base(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(KyonError, match=r"adapter_config\.json"):
        adapter_base(tmp_path)


def test_a_checkpoint_that_grew_is_not_what_was_written(run: Path) -> None:
    file = run / "checkpoints/a.ckpt"
    assert fault_of_checkpoint(file) is None
    file.write_bytes(file.read_bytes() + b"0")
    assert "is not what was written" in str(fault_of_checkpoint(file))


def test_it_runs_without_lightning() -> None:
    code = "import sys, kyon_pl.runs.adapters; print('lightning' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False True\n"


@pytest.mark.parametrize("command", ["chat", "web", "merge", "convert-adapter", "push", "judge"])
def test_all_commands_take_the_same_checkpoint_of_a_run(command: str) -> None:
    """What the chat answers with is what is merged and pushed: the best, or the last if nothing was validated."""
    which = options_of(command)["which"]
    assert (which.default, "or the last if nothing was validated" in which.meaning) == (None, True)
