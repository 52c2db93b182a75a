"""Whether the process of a rank has ended."""

from __future__ import annotations

import os
import subprocess
import sys

from kyon_pl.training.callbacks.ranks import has_ended


def test_only_a_process_that_runs_has_not_ended() -> None:
    """One that has ended is a zombie until its parent asks for its status, and then gone."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not has_ended(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert has_ended(process.pid)
        process.wait()
        assert has_ended(process.pid)
