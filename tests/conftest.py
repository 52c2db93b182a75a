"""What all tests share: no network, no surprises from the caller's environment."""

from __future__ import annotations

import os
import tempfile

# before anything imports torch or the Hub's client
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="kyon_pl-tests-"))
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models; more threads only wait for each other on a busy machine
