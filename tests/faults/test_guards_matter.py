"""No guard can be taken away without a test that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_each_guard_has_a_test_that_fails_without_it() -> None:
    script = Path(__file__).with_name("guards_matter.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
