"""A full disk, one that can only be read, checkpoints cut short or of another base: what was there stays, and one
paragraph says what to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from compare import run_differences
from runs import SHAPE, ForkServers, Undisturbed, Way, only_run, write_inputs

WAY = Way()
KILL = f"late on_train_batch_end {WAY.batches_per_epoch + 2}"
CUTS = 20


def mount(*words: str) -> bool:
    """Whether it worked."""
    return subprocess.run(["mount", "-t", "tmpfs", *words], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of the test's own, with a killed run on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not mount("-o", "size=8m", "tmpfs", str(folder)):
        pytest.skip("only root can mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, how: str) -> None:
    """Make a disk readable only (`ro`), or as it was (`rw`).

    The loader workers of a killed run hold its files open for a moment longer than it lives, and a disk with a file
    open for writing stays writable.
    """
    for _ in range(100):
        if mount("-o", f"remount,{how}", "tmpfs", str(disk)):
            return
        time.sleep(0.1)
    holders = subprocess.run(["fuser", "-vm", str(disk)], capture_output=True, text=True)
    raise AssertionError(f"after 10 s, some process still writes there:\n{holders.stderr}")


def killed_run(folder: Path, servers: ForkServers) -> dict[Path, bytes]:
    """Kill a run in its second epoch.

    Returns:
        The files of its checkpoints.
    """
    write_inputs(folder, WAY)
    statuses, said = servers.fit(folder, WAY, KILL)
    assert statuses == [-9], said[-3000:]
    return files_of(folder)


def files_of(folder: Path) -> dict[Path, bytes]:
    """All files of the only run's checkpoints."""
    return {path: path.read_bytes() for path in (only_run(folder) / "checkpoints").rglob("*") if path.is_file()}


def paragraph(said: str) -> str:
    """The one paragraph at the end, behind which there is nothing."""
    assert "Traceback" not in said, said[-3000:]
    last: str = said.strip().splitlines()[-1]
    assert last.startswith("kyon-pl fit: "), said[-3000:]
    return last


@pytest.mark.slow
@pytest.mark.parametrize("free_bytes", [24 * 1024, 0, 64 * 1024])
def test_full_disk(free_bytes: int, disk: Path, servers: ForkServers, undisturbed: Undisturbed) -> None:
    """It may be a checkpoint that does not fit, or a curve."""
    before = killed_run(disk / "inputs", servers)
    filler = disk / "filler"
    free = os.statvfs(disk)
    filler.write_bytes(b"x" * (free.f_bavail * free.f_bsize - free_bytes))
    statuses, said = servers.fit(disk / "inputs", WAY)
    assert statuses == [2], said[-3000:]
    assert "disk is full" in paragraph(said)
    assert files_of(disk / "inputs") == before
    filler.unlink()
    statuses, said = servers.fit(disk / "inputs", WAY)
    assert statuses == [0], said[-3000:]
    assert run_differences(undisturbed(WAY), only_run(disk / "inputs")) == []


@pytest.mark.slow
def test_disk_that_can_only_be_read(disk: Path, servers: ForkServers, undisturbed: Undisturbed) -> None:
    before = killed_run(disk / "inputs", servers)
    remount(disk, "ro")
    statuses, said = servers.fit(disk / "inputs", WAY)
    assert statuses == [2], said[-3000:]
    assert "lightning_logs" in paragraph(said)
    assert files_of(disk / "inputs") == before
    remount(disk, "rw")
    assert servers.fit(disk / "inputs", WAY)[0] == [0]
    assert run_differences(undisturbed(WAY), only_run(disk / "inputs")) == []


@pytest.mark.slow
def test_checkpoint_cut_short(servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Named, it is refused; not named, it is passed over, and said so, for an older one."""
    before = killed_run(tmp_path / "inputs", servers)
    newest = only_run(tmp_path / "inputs") / f"checkpoints/step={WAY.steps_per_epoch + 1}.ckpt"
    whole = before[newest]
    places = [0, 1, len(whole) - 1, *sorted(Random(3).sample(range(2, len(whole) - 1), CUTS - 3))]
    for place in places:
        newest.write_bytes(whole[:place])
        statuses, said = servers.fit(tmp_path / "inputs", WAY, "", "--ckpt_path", str(newest))
        assert statuses == [2], f"cut at {place}:\n{said[-3000:]}"
        assert str(newest) in paragraph(said)
        assert files_of(tmp_path / "inputs") == before | {newest: whole[:place]}
    statuses, said = servers.fit(tmp_path / "inputs", WAY)
    assert statuses == [0], said[-3000:]
    assert f"{newest.name} is skipped" in said
    assert run_differences(undisturbed(WAY), only_run(tmp_path / "inputs")) == []


@pytest.mark.slow
def test_checkpoint_of_another_base(servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Of the same shape, as far as the adapter can tell: only what is frozen differs."""
    before = killed_run(tmp_path / "inputs", servers)
    newest = only_run(tmp_path / "inputs") / f"checkpoints/step={WAY.steps_per_epoch + 1}.ckpt"
    shape = tmp_path / "inputs/shape/config.json"
    shape.write_text(json.dumps(SHAPE | {"ffn_hidden_size": 64}))
    statuses, said = servers.fit(tmp_path / "inputs", WAY, "", "--ckpt_path", str(newest))
    assert statuses == [2], said[-3000:]
    assert "base" in paragraph(said)
    assert files_of(tmp_path / "inputs") == before
    shape.write_text(json.dumps(SHAPE))
    assert servers.fit(tmp_path / "inputs", WAY)[0] == [0]
    assert run_differences(undisturbed(WAY), only_run(tmp_path / "inputs")) == []
