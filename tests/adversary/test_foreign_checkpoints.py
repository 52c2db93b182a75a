"""A checkpoint that is not what kyon-pl fit wrote is refused by every command, in one paragraph that names it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import VALUES

from kyon_pl.chat.loading import load_chat_model
from kyon_pl.cli import main
from kyon_pl.errors import CheckpointError
from kyon_pl.runs.checkpoint_io import read_checkpoint
from kyon_pl.runs.integrity import CHECKSUMS, checksums

LEGACY = Path(__file__).parents[1] / "legacy/37c419d"
CHECKPOINT = "lightning_logs/version_0/checkpoints/step=45.ckpt"
SHORT = ["--trainer.logger", "false", "--trainer.limit_val_batches", "1", "--held_out", "null"]

Checkpoint = dict[str, Any]
Change = Callable[[Checkpoint], object]


def each_callback(checkpoint: Checkpoint) -> None:
    checkpoint["callbacks"] = dict.fromkeys(checkpoint["callbacks"], 5)


# what Lightning, its loops and callbacks would fail at; the list of contents is made to match
FORGED: dict[str, Change] = {
    "no list of contents": lambda checkpoint: checkpoint.pop(CHECKSUMS),
    "no weights": lambda checkpoint: checkpoint.pop("state_dict"),
    "weights that are none": lambda checkpoint: checkpoint.update(state_dict={"x": 5}),
    "loops 5": lambda checkpoint: checkpoint.update(loops=5),
    "callbacks 5": lambda checkpoint: checkpoint.update(callbacks=5),
    "callbacks of 5": each_callback,
    "version 5": lambda checkpoint: checkpoint.update({"pytorch-lightning_version": 5}),
    "version x": lambda checkpoint: checkpoint.update({"pytorch-lightning_version": "x"}),
    "version 0": lambda checkpoint: checkpoint.update({"pytorch-lightning_version": "0.1", "callbacks": {"a": 5}}),
    "hyper_parameters 5": lambda checkpoint: checkpoint.update(hyper_parameters=5),
}
IN_EVERY_RUN = ("callbacks of 5", "version x")
COMMANDS = [
    pytest.param(command, name, marks=[] if command == "validate" and name in IN_EVERY_RUN else pytest.mark.slow)
    for command in ("validate", "test", "predict", "fit")
    for name in FORGED
]


def forge(file: Path, change: Change) -> None:
    """Change a checkpoint, and its list of contents so that it matches."""
    checkpoint = torch.load(file, weights_only=True)
    change(checkpoint)
    if CHECKSUMS in checkpoint:
        checkpoint[CHECKSUMS] = checksums(checkpoint)
    torch.save(checkpoint, file)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(LEGACY, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path(CHECKPOINT)


@pytest.mark.parametrize(("command", "name"), COMMANDS)
def test_foreign_checkpoint_is_refused(command: str, name: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge(file, FORGED[name])
    with pytest.raises(SystemExit) as stopped:
        main([command, "--config", "run.yaml", "--ckpt_path", CHECKPOINT, *SHORT])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"kyon-pl {command}: ")


def test_checkpoint_without_a_list_of_contents_is_refused(file: Path) -> None:
    read_checkpoint(file)
    forge(file, FORGED["no list of contents"])
    with pytest.raises(CheckpointError, match=f"{CHECKSUMS}: it is missing"):
        read_checkpoint(file)


@pytest.mark.slow
def test_values_of_every_key_are_checked(file: Path) -> None:
    whole = torch.load(file, weights_only=True)
    for key in whole:
        for value in VALUES:
            checkpoint = whole | {key: value}
            if key != CHECKSUMS:
                checkpoint[CHECKSUMS] = checksums(checkpoint)
            torch.save(checkpoint, file)
            try:
                read_checkpoint(file)
            except CheckpointError as error:
                assert key in str(error) or "checkpoint" in error.where  # noqa: PT017


@pytest.mark.parametrize("content", [None, b"", b"evil"])
def test_chat_says_that_it_reads_the_folder_beside_a_checkpoint(
    content: bytes | None, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    caplog.set_level("INFO", "kyon_pl")
    load_chat_model(str(file), "last", None, None, None)
    assert f"adapter: {file.with_suffix('')}, saved with {file.name}, which itself is not read" in caplog.text
    assert "training cannot be resumed from this checkpoint" in caplog.text
