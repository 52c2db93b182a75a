"""Runs with loader workers on a machine that gives them too little: one paragraph, status 2, and no waiting."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from limits import HANG_S

FIT = [sys.executable, "-m", "kyon_pl", "fit", "--config", "demo", "--trainer.accelerator", "cpu", "--held_out", "null"]
FIT += ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--trainer.num_sanity_val_steps", "0"]
FEW_FILES, MANY_WORKERS = 40, 24  # 40 are enough until the workers are started
FULL = "shared memory (/dev/shm): it is full. Enlarge it (Docker: --shm-size 1g), or set data.workers 0."
NO_ROOM = "No space left on device (28). Enlarge it (Docker: --shm-size 1g), or set data.workers 0."


def check_refused(done: subprocess.CompletedProcess[str], reason: str) -> None:
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("kyon-pl fit: ")
    assert reason in last


@pytest.mark.slow
def test_too_few_open_files(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    command = [*FIT, "--data.workers", str(MANY_WORKERS)]
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True, timeout=HANG_S)
    check_refused(done, "too many open files. Raise the limit, for example with `ulimit -n 4096`")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="only root can mount a tmpfs")
@pytest.mark.parametrize(("size", "reason"), [("4k", FULL), ("64k", NO_ROOM)], ids=["no semaphore", "no batch"])
def test_shared_memory_is_full(size: str, reason: str, tmp_path: Path) -> None:
    """In a mount namespace of its own: the 4 KiB hold a file already, and 64 KiB the semaphores but no batch."""
    small = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    fill = "head -c 4096 /dev/zero > /dev/shm/full; " if size == "4k" else ""
    command = ["unshare", "--mount", "bash", "-c", f'{small} || exit 77; {fill}exec "$@"', "bash", *FIT]
    command += ["--data.workers", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S)
    if done.returncode == 77:
        pytest.skip("no right to mount a tmpfs")
    check_refused(done, reason)
