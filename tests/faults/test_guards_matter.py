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
    """Quick too: functions by their text; cases, whose names change with the parameters, as pytest collects them."""
    tests = {guard.test for guard in guards_matter.GUARDS}
    missing = {test for test in tests if "::" in test and not _is_defined(*test.partition("[")[0].split("::"))}
    assert missing == set()
    cases = sorted(test for test in tests if "[" in test)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-m", "not gpu", "-p", "no:cacheprovider", *cases]
    run = subprocess.run(command, cwd=guards_matter.ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


def _is_defined(file: str, function: str) -> bool:
    return f"\ndef {function}(" in (guards_matter.ROOT / file).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_each_guard_has_a_test_that_fails_without_it() -> None:
    script = Path(__file__).with_name("guards_matter.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
