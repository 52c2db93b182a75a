"""What all tests share: no network, no surprises from the caller's environment."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from limits import HANG_S

# before anything imports torch or the clients of hubs
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="kyon_pl-tests-"))
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS", "2")  # its client's, before each of which it waits
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["KYON_PL_LANG"] = "en"  # whatever the language of this terminal
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models; more threads only wait for each other on a busy machine

# a shell ignores them for what it starts in the background, and the commands under test would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Take back what a test leaves in the process; and let pytest see what is logged, whatever was run before.

    Lightning puts the rank into the environment, and leaves its handlers of signals after a run that failed.
    """
    logging.getLogger("kyon_pl").propagate = True
    before = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `make demo`, for slow tests: it takes a minute."""
    folder = tmp_path_factory.mktemp("demo_run")
    words = ["fit", "--config", "demo", "--trainer.enable_progress_bar", "false"]
    command = [sys.executable, "-m", "kyon_pl", *words]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG_S)
    assert run.returncode == 0, run.stderr[-2000:]
    return folder / "lightning_logs/version_0"
