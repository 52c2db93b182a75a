"""The same command typed twice: one run goes on, the other says so, and the bytes are those of an undisturbed run."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest
from compare import run_differences
from limits import HANG_S
from runs import ForkServers, Run, Undisturbed, Way, only_run, write_inputs

FIT = ["fit", "--config", "run.yaml"]
PAIRS, SECONDS = 2, (0.0, 0.5, 2.0, 4.0)
with_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="/proc says whether a process is stopped")


def check_refused(run: Run, statuses: list[int], other: Run) -> None:
    """It has named the other run, in one paragraph."""
    said = run.said()
    assert statuses[0] == 2, said[-3000:]
    assert 0 not in statuses
    assert "Traceback" not in said
    names = f"version_0: process {other.pids[0]} on {socket.gethostname()} is writing it. Wait until it is done"
    assert names in said, said[-3000:]


def wait_until_stopped(run: Run) -> None:
    deadline_s = time.monotonic() + HANG_S
    while Path(f"/proc/{run.pids[0]}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline_s, run.said()[-3000:]
        time.sleep(0.02)


def stopped(servers: ForkServers, folder: Path, environment: dict[str, str]) -> Run:
    """A run that is alive and does nothing from a place on, see kill_at.py; a second one is refused beside it."""
    run = servers.start(FIT, folder, environment=environment)
    wait_until_stopped(run)
    second = servers.start(FIT, folder)
    check_refused(second, second.wait(), run)
    return run


@pytest.mark.slow
@with_proc
def test_the_second_is_refused_while_the_first_lives_and_goes_on_when_it_is_killed(
    servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """A new run, and one that was resumed."""
    folder = tmp_path / "inputs"
    write_inputs(folder, Way())
    first = stopped(servers, folder, {"KILL_AT": "late on_train_batch_end 6 0 SIGSTOP 1"})
    first.send(signal.SIGKILL)
    assert first.wait() == [-9]
    first = stopped(servers, folder, {"KILL_AT": "late on_train_batch_end 12 0 SIGSTOP 1"})
    first.send(signal.SIGCONT)
    assert first.wait() == [0], first.said()[-3000:]
    assert "resuming lightning_logs/version_0 from step=" in first.said()
    assert run_differences(undisturbed(Way()), only_run(folder)) == []
    assert not (only_run(folder) / "run.lock").exists()


def wait(run: Run) -> list[int]:
    """The exit statuses; where the first rank fails the others are killed, as torchrun does."""
    (first,) = run.server.ask(wait=run.pids[:1])
    if first and run.pids[1:]:
        run.send(signal.SIGKILL)
    others = run.server.ask(wait=run.pids[1:])
    run.server.running.remove(run.pids[0])
    return [first, *others]


def check_pair(servers: ForkServers, folder: Path, way: Way, apart_s: float) -> None:
    """Start the same command twice, and expect one run; the first is slow enough to be alive when the second starts."""
    slow = {"KILL_AT": f"early on_train_batch_end 3 all SLEEP {int(apart_s) + 3}"} if apart_s else {}
    first = servers.start(FIT, folder, way.processes, slow)
    time.sleep(apart_s)
    second = servers.start(FIT, folder, way.processes)
    statuses = [wait(first), wait(second)]
    if not apart_s and statuses[0][0] == 2:
        first, second, statuses = second, first, statuses[::-1]
    assert statuses[0] == [0] * way.processes, first.said()[-3000:]
    check_refused(second, statuses[1], first)


@pytest.mark.slow
@with_proc
def test_the_second_is_refused_before_the_first_has_a_record(
    servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """While it encodes its rows, say. There is nothing to resume yet, and no new run is started beside it."""
    folder = tmp_path / "inputs"
    write_inputs(folder, Way())
    first = stopped(servers, folder, {"STOP_BEFORE": "run.json"})
    assert not list(only_run(folder).glob("*.json"))
    first.send(signal.SIGCONT)
    assert first.wait() == [0], first.said()[-3000:]
    assert run_differences(undisturbed(Way()), only_run(folder)) == []


def test_two_at_once(servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path) -> None:
    write_inputs(tmp_path / "inputs", Way())
    check_pair(servers, tmp_path / "inputs", Way(), apart_s=0)
    assert run_differences(undisturbed(Way()), only_run(tmp_path / "inputs")) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", range(PAIRS))
@pytest.mark.parametrize("apart_s", SECONDS)
def test_pairs(apart_s: float, number: int, servers: ForkServers, tmp_path: Path) -> None:
    """With a checkpoint at every step; the last pair is of two runs of two processes each."""
    way = Way(2) if number == PAIRS - 1 else Way()
    folders = [tmp_path / "undisturbed", tmp_path / "inputs"]
    for folder in folders:
        write_inputs(folder, way)
        config = folder / "run.yaml"
        config.write_text(config.read_text().replace("every_n_steps: 2", "every_n_steps: 1"))
    assert servers.fit(folders[0], way)[0] == [0] * way.processes
    check_pair(servers, folders[1], way, apart_s)
    assert run_differences(*map(only_run, folders)) == []
