"""Locks between processes."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from limits import HANG_S

from kyon_pl.errors import MachineError
from kyon_pl.locks import NO_LOCKS, Lock, read_holder

# holds the lock with a forked child, as a run does with its loader workers
HOLD = """
import os, sys, time
from pathlib import Path
from kyon_pl.locks import Lock
lock = Lock(Path(sys.argv[1]), Path("run"), "Wait", {"seed": "1"})
if os.fork():
    print("held", flush=True)
time.sleep(600)
"""


def lock(file: Path) -> Lock:
    return Lock(file, file.parent, "Wait")


def test_another_process_is_named_until_it_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "run.lock"
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        holder = read_holder(file)
        assert holder
        assert holder.process == f"process {process.pid} on {socket.gethostname()}"
        assert holder.settings == {"seed": "1"}
        with pytest.raises(MachineError, match=f"{tmp_path}: {holder.process} is writing it. Wait"):
            lock(file)
        process.kill()
        process.wait(timeout=HANG_S)
        assert file.exists()
        assert read_holder(file) is None  # although its forked child lives
        with lock(file):
            os.killpg(process.pid, signal.SIGKILL)
            assert read_holder(file)
    assert not file.exists()


def test_released_once_and_only_by_the_process_that_holds_it(tmp_path: Path) -> None:
    held = lock(tmp_path / "a.lock")
    child = multiprocessing.get_context("fork").Process(target=held.release)
    child.start()
    child.join(HANG_S)
    assert read_holder(held.file)
    held.release()
    with lock(held.file) as again:
        held.release()
        assert read_holder(again.file)


def take(file: Path, started: float, seen: Path) -> None:
    """Count those who hold the lock at once."""
    while time.time() < started:
        pass
    for number in range(200):
        try:
            held = lock(file)
        except MachineError:
            continue
        (seen / f"{os.getpid()}").touch(exist_ok=False)
        assert len(list(seen.iterdir())) == 1, number
        (seen / f"{os.getpid()}").unlink()
        held.release()


def test_never_two_holders_although_the_file_is_removed_each_time(tmp_path: Path) -> None:
    (tmp_path / "seen").mkdir()
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "a.lock", time.time() + 0.2, tmp_path / "seen")
    processes = [context.Process(target=take, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG_S)
    assert [process.exitcode for process in processes] == [0] * 4


def test_a_file_that_its_holder_removed_after_it_was_opened_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is free, so that a third process would create another file and lock that."""
    held, flock = lock(tmp_path / "a.lock"), fcntl.flock

    def after_release(handle: int, kind: int) -> None:
        held.release()
        flock(handle, kind)

    monkeypatch.setattr(fcntl, "flock", after_release)
    with lock(held.file):
        monkeypatch.undo()
        with pytest.raises(MachineError, match="is writing it"):
            lock(held.file)


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_file_system_without_locks_is_said(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(handle: int, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING, "kyon_pl"), lock(tmp_path / "a.lock"):
        assert "has no locks" in caplog.text
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        lock(tmp_path / "a.lock")


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"pid": 1}), json.dumps({"settings": 3})])
def test_a_holder_that_does_not_say_who_it_is(content: str, tmp_path: Path) -> None:
    with lock(tmp_path / "a.lock") as held:
        held.file.write_text(content)
        holder = read_holder(held.file)
        assert holder
        assert (holder.process, dict(holder.settings)) == ("another process", {})
