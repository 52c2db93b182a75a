"""Where the golden files are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """The golden folder: `tests/golden`, or one with the same file names and another shape and vocabulary."""
    return Path(os.environ.get("KYON_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
