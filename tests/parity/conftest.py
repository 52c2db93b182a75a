"""The folder of the golden files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """`tests/golden`, or `KYON_GOLDEN_DIR`: the same file names with another shape and vocabulary."""
    return Path(os.environ.get("KYON_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
