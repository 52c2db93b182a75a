"""Loader workers and the signals that stop a run."""

from __future__ import annotations

import os
import signal
import sys
import threading


def let_signals_pass(worker: int) -> None:
    """Keep a loader worker alive when a terminal or a scheduler signals all processes of a run to stop.

    The training process still needs batches for the step that it finishes. It alone may end its workers: where an error
    leaves them running, it sends each one SIGTERM at its own end and then waits for it, without a limit.

    Args:
        worker: its number, which torch gives to such a function.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere nothing tells who has sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_with_parent(parent: int) -> None:
    while sys.platform == "linux":
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(128 + signal.SIGTERM)
