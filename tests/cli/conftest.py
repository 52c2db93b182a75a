"""What several command line tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from reply_runs import make_runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders: `on` with replies, `off` without, `resumed` stopped in its second epoch and gone on with."""
    return make_runs(tmp_path_factory.mktemp("runs"))
