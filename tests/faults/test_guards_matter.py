"""No guard can be taken away without a test that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import guards_matter
import pytest


def test_each_guard_is_where_its_entry_says() -> None:
    """Quick, so that a move is noticed before the slow suite runs."""
    package = guards_matter.ROOT / "kyon_pl"
    counts = {str(guard): (package / guard.file).read_text().count(guard.old) for guard in guards_matter.GUARDS}
    assert {name for name, count in counts.items() if count != 1} == set()


def test_each_test_that_an_entry_names_is_there() -> None:
    """Quick too: the name of a case changes with its parameters."""
    tests = sorted({guard.test for guard in guards_matter.GUARDS})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-m", "not gpu", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, cwd=guards_matter.ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_each_guard_has_a_test_that_fails_without_it() -> None:
    script = Path(__file__).with_name("guards_matter.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
