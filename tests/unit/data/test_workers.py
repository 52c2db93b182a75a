"""A loader worker outlives the signals that stop a run, and not its training process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from limits import HANG_S

LOADER = """
import os, sys
from torch.utils.data import DataLoader
from kyon_pl.data.batches.loader import ignore_stop_signals
loader = DataLoader(range(8), num_workers=2, worker_init_fn=ignore_stop_signals, persistent_workers=True)
batches = iter(loader)
next(batches), next(batches)  # one of each worker: both are up, and pass signals by
print(*[worker.pid for worker in batches._workers], flush=True)
sys.stdin.readline()
print(len(list(batches)), flush=True)
sys.modules["kept"] = batches  # as an error's traceback keeps it: nobody shuts the workers down
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who has sent a signal")
def test_workers_give_all_batches_after_signals_and_end_with_their_parent() -> None:
    command = [sys.executable, "-c", LOADER]
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert run.stdin
        assert run.stdout
        workers = [int(word) for word in run.stdout.readline().split()]
        for _ in range(2):
            for worker in workers:
                os.kill(worker, signal.SIGTERM)
                os.kill(worker, signal.SIGINT)
            time.sleep(0.1)
        print(file=run.stdin, flush=True)
        assert run.stdout.readline() == "6\n"
        assert run.wait(timeout=HANG_S) == 0, "it waited for workers that do not end"
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)


# each worker computes for so long that torch, which looks for the parent between two rows, would not notice
BUSY = """
import sys, time
from pathlib import Path
from torch.utils.data import DataLoader
from kyon_pl.data.batches.loader import ignore_stop_signals

class Rows:
    def __len__(self):
        return 8

    def __getitem__(self, number):
        if number >= 2:
            time.sleep(20)
            Path(sys.argv[1], str(number)).touch()
        return number

batches = iter(DataLoader(Rows(), num_workers=2, worker_init_fn=ignore_stop_signals))
next(batches), next(batches)  # both are up
print(*[worker.pid for worker in batches._workers], flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, and only Linux tells who has sent a signal")
def test_busy_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUSY, str(tmp_path)]
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdout
    workers = [int(word) for word in run.stdout.readline().split()]
    assert len(workers) == 2
    run.kill()
    run.wait()
    until_s = time.monotonic() + HANG_S
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until_s, "a worker outlives its parent"
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == [], "a worker went on computing"
