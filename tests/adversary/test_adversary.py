"""Attacks by chance on every command; `run.py` tries all of them by hand, and `counts.md` has what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from limits import HANG_S

HERE = Path(__file__).parent


def attack(*words: str) -> None:
    """Try attacks in a process of its own, the same ones unless a seed is given: a change is not blamed for others.

    The seed is printed, so that a failure can be repeated. `KYON_ADVERSARY_SEED=$RANDOM pytest tests/adversary` looks
    for what nobody has seen yet.
    """
    seed = os.environ.get("KYON_ADVERSARY_SEED", "2026")
    command = [sys.executable, str(HERE / "run.py"), "--seed", seed, *words]
    print(" ".join(command))
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=HANG_S)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


def test_some_attacks_by_chance() -> None:
    attack("--draw", "12", "--processes", "1")


@pytest.mark.slow
def test_many_attacks_by_chance() -> None:
    attack("--draw", "400", "--processes", "2")
