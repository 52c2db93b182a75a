"""What all tests share: no network, no surprises from the caller's environment."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Iterator

import pytest

# before anything imports torch or the clients of hubs
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="kyon_pl-tests-"))
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS", "2")  # its client's, before each of which it waits
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models; more threads only wait for each other on a busy machine

# a shell ignores them for what it starts in the background, and the commands under test would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Take back what a test leaves in the environment: Lightning puts the rank of a process there, for good.

    And let pytest see what is logged, whatever command line was run before in this process.
    """
    logging.getLogger("kyon_pl").propagate = True
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
