"""SIGTERM and SIGINT: the optimizer step is finished, all ranks checkpoint and stop, and the run can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from compare import run_differences
from limits import HANG_S
from runs import HERE, ForkServers, Undisturbed, Way, only_run, write_inputs

TWO = Way(2, "32-true", "padded")
BATCHES, STEPS = TWO.batches_per_epoch, TWO.steps_per_epoch


def newest_step(folder: Path) -> int:
    """Of the checkpoints that are marked as whole, from their files."""
    markers = (only_run(folder) / "checkpoints").glob("*/COMPLETE")
    files = [marker.parent.with_suffix(".ckpt") for marker in markers]
    return max((torch.load(file, weights_only=True)["global_step"] for file in files), default=0)


def all_end(group: int, within_s: float) -> bool:
    """Whether a process group is empty after some time; loader workers look for their parent every few seconds."""
    for _ in range(int(within_s * 10)):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


# where one rank gets it -> the step at which all have stopped; no checkpoint is due there
PLACES = {
    "in the first half of a step": (f"late on_train_batch_start {BATCHES + 2} 1 SIGTERM 1", STEPS + 2),
    "in the second half": (f"late on_train_batch_start {BATCHES + 3} 0 SIGTERM 1", STEPS + 2),
    "between two steps": (f"late on_train_batch_end {BATCHES + 3} 1 SIGTERM 1", None),
    "in an epoch's last batch": (f"early on_train_batch_start {BATCHES - 1} 1 SIGTERM 1", STEPS),
    "in validation": (f"early on_validation_end {STEPS + 2} 1 SIGTERM 1", None),
    "in the last step": (f"early on_train_batch_start {3 * BATCHES - 1} 1 SIGTERM 1", 3 * STEPS),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_sigterm_to_one_of_two_ranks(
    place: str, servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder, (kill_at, step) = tmp_path / "inputs", PLACES[place]
    write_inputs(folder, TWO)
    statuses, said = servers.fit(folder, TWO, kill_at)
    assert statuses == [143, 143], said[-3000:]
    assert step in (None, newest_step(folder))
    statuses, said = servers.fit(folder, TWO)
    assert statuses == [0, 0], said[-3000:]
    assert run_differences(undisturbed(TWO), only_run(folder)) == []


@pytest.mark.slow
def test_interrupt_of_all_ranks(servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """As the terminal's Ctrl-C reaches them."""
    folder = tmp_path / "inputs"
    write_inputs(folder, TWO)
    statuses, said = servers.fit(folder, TWO, f"late on_train_batch_start {BATCHES + 2} all SIGINT 1")
    assert statuses == [130, 130], said[-3000:]
    assert "Traceback" not in said
    assert newest_step(folder) == STEPS + 2
    assert servers.fit(folder, TWO)[0] == [0, 0]
    assert run_differences(undisturbed(TWO), only_run(folder)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_second_signal_stops_at_once(
    name: str, status: int, servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder, way = tmp_path / "inputs", Way()
    write_inputs(folder, way)
    batches, steps = way.batches_per_epoch, way.steps_per_epoch
    statuses, said = servers.fit(folder, way, f"late on_train_batch_start {batches + 2} 0 {name} 2")
    assert statuses in ([status], [-signal.Signals[name]]), said[-3000:]
    assert newest_step(folder) == steps + 1  # the checkpoint that was there
    assert servers.fit(folder, way)[0] == [0]
    assert run_differences(undisturbed(way), only_run(folder)) == []


@pytest.mark.slow
def test_sigterm_to_the_command_that_started_the_ranks(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """As a user or a scheduler stops `kyon-pl fit`, which starts its second rank itself."""
    folder = tmp_path / "inputs"
    write_inputs(folder, TWO)
    command = [sys.executable, "-m", "kyon_pl", "fit", "--config", "run.yaml", "--allow_code", "kill_at"]
    settings = os.environ | {"PYTHONPATH": str(HERE)}
    log = (folder / "log.txt").open("w")
    run = subprocess.Popen(command, cwd=folder, env=settings, stdout=log, stderr=log, start_new_session=True)
    try:
        while not list(folder.glob("lightning_logs/version_0/checkpoints/*/COMPLETE")):
            assert run.poll() is None, (folder / "log.txt").read_text()[-3000:]
            time.sleep(0.01)
        run.terminate()
        assert run.wait(timeout=HANG_S) == 143, (folder / "log.txt").read_text()[-3000:]
        assert all_end(run.pid, within_s=20), "a rank or a loader worker is still there"
        assert 2 <= newest_step(folder) < 3 * STEPS
        again = subprocess.run(command, cwd=folder, env=settings, stdout=log, stderr=log, timeout=HANG_S)
    finally:
        run.kill()
    assert again.returncode == 0, (folder / "log.txt").read_text()[-3000:]
    assert run_differences(undisturbed(TWO), only_run(folder)) == []
