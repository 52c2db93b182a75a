"""Killed at an exact place, continued by the same command: the same bytes as an undisturbed run."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from compare import run_differences
from curves import curves
from runs import EPOCHS, ForkServers, Undisturbed, Way, only_run, write_inputs

# Checkpoints are due at every second step: in the first epoch its end has none, in the second it has one.
PLACES = ("epoch end", "mid-epoch", "inside an accumulation window", "right after validation", "last epoch")
PROCESSES, PRECISIONS, BATCHINGS = (1, 2), ("32-true", "bf16-mixed"), ("padded", "packed")
REPRESENTATIVE = ("inside an accumulation window", Way(1, "bf16-mixed", "packed"))
CASES = [
    pytest.param(place, way, marks=[] if (place, way) == REPRESENTATIVE else [pytest.mark.slow], id=f"{place}-{way}")
    for number, place in enumerate(PLACES)
    for i, j, k in product((0, 1), repeat=3)
    # half of the ways, in which each pair of values of two settings occurs; the next place has the other half
    if (i + j + k - number) % 2 == 0
    for way in [Way(PROCESSES[i], PRECISIONS[j], BATCHINGS[k])]
]


def kills(place: str, way: Way) -> list[str]:
    """Where a run is killed, and where the runs that continue it; micro-batches, epochs and steps count from 0."""
    batches, steps = way.batches_per_epoch, way.steps_per_epoch
    validated = (steps + 2, 2 * steps + 2) if way.batching == "padded" else (steps, 2 * steps)
    return {
        "epoch end": ["early on_train_epoch_end 0", "late on_train_epoch_end 1"],
        "mid-epoch": [f"late on_train_batch_end {batches + 1}"],
        "inside an accumulation window": [f"late on_train_batch_end {at}" for at in (batches + 2, 2 * batches)],
        "right after validation": [f"early on_validation_end {validated[0]}", f"late on_validation_end {validated[1]}"],
        "last epoch": [f"early on_train_batch_end {EPOCHS * batches - 1}", f"early on_train_end {EPOCHS * steps}"],
    }[place]


@pytest.mark.parametrize(("place", "way"), CASES)
def test_kill_and_resume(place: str, way: Way, servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    write_inputs(folder, way)
    for kill in kills(place, way):
        statuses, said = servers.fit(folder, way, kill)
        assert statuses == [-9] * way.processes, f"{kill} was not reached:\n{said[-3000:]}"
        if way.batching == "padded" and kill.startswith("late on_validation_end"):  # in the middle of an epoch, and due
            assert (only_run(folder) / f"checkpoints/step={kill.split()[-1]}.ckpt").exists()
    statuses, said = servers.fit(folder, way)
    assert statuses == [0] * way.processes, said[-3000:]
    assert run_differences(undisturbed(way), only_run(folder)) == []
    assert curves(undisturbed(way)) == curves(only_run(folder))


@pytest.mark.slow
def test_moved_run_goes_on(servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path) -> None:
    way, folder, elsewhere = Way(), tmp_path / "inputs", tmp_path / "elsewhere"
    write_inputs(folder, way)
    assert servers.fit(folder, way, f"late on_train_batch_end {way.batches_per_epoch + 2}")[0] == [-9]
    folder.rename(elsewhere)
    statuses, said = servers.fit(elsewhere, way)
    assert statuses == [0], said[-3000:]
    assert run_differences(undisturbed(way), only_run(elsewhere)) == []


@pytest.mark.slow
def test_finished_run_says_so(servers: ForkServers, undisturbed: Undisturbed) -> None:
    """And leaves everything as it is."""
    run = undisturbed(Way())
    before = {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()}
    statuses, said = servers.fit(run.parent.parent, Way())
    assert statuses == [0]
    assert "finished" in said
    assert before == {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_run_killed_behind_its_last_checkpoint(servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Everything is there but the word that it is."""
    way, folder = Way(), tmp_path / "inputs"
    write_inputs(folder, way)
    assert servers.fit(folder, way, f"late on_train_end {EPOCHS * way.steps_per_epoch}")[0] == [-9]
    assert servers.fit(folder, way)[0] == [0]
    assert "finished" in servers.fit(folder, way)[1]
    assert run_differences(undisturbed(way), only_run(folder)) == []
