"""The comparer sees each kind of state that a resumed run could get wrong, and names it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from compare import checkpoint_differences, load
from mutations import MUTATIONS
from runs import Undisturbed, Way

SCALER = {"scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 7}


@pytest.fixture
def pair(undisturbed: Undisturbed, tmp_path: Path) -> tuple[Path, Path]:
    """The same checkpoint twice, with a scaler's state, which none has on a CPU."""
    original = max((undisturbed(Way()) / "checkpoints").glob("step=*.ckpt"))
    twice = tmp_path / "one.ckpt", tmp_path / "other.ckpt"
    for file in twice:
        torch.save(load(original) | {"MixedPrecision": dict(SCALER)}, file)
        shutil.copytree(original.with_suffix(""), file.with_suffix(""))
    return twice


def test_equal_checkpoints_do_not_differ(pair: tuple[Path, Path]) -> None:
    assert checkpoint_differences(*pair) == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_difference_is_named(name: str, pair: tuple[Path, Path]) -> None:
    checkpoint = load(pair[1])
    MUTATIONS[name].change(checkpoint)
    torch.save(checkpoint, pair[1])
    (said,) = checkpoint_differences(*pair)
    assert MUTATIONS[name].named in said


def test_one_byte_of_the_adapter_is_seen(pair: tuple[Path, Path]) -> None:
    file = pair[1].with_suffix("") / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert checkpoint_differences(*pair) == ["one/adapter_model.safetensors: bytes"]


def test_nothing_in_a_checkpoint_says_where_it_lies(undisturbed: Undisturbed) -> None:
    """So no path need be exempt, and a run folder can be moved."""
    run = undisturbed(Way())
    for file in (run / "checkpoints").rglob("*.ckpt"):
        assert str(run.parent) not in repr(load(file))
