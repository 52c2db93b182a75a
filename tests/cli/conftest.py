"""What several command line tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from push_asker import PushAsker
from reply_runs import make_runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders: `on` with replies, `off` without, `resumed` stopped in its second epoch and gone on with."""
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def kyon_pl(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PushAsker]:
    """The command line in a process of its own, with the test module's `hub` as the Hub."""
    with PushAsker(hub, tmp_path_factory.mktemp("home")) as asker:
        yield asker
