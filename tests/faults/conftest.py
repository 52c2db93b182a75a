"""What the fault tests share: processes to fork runs from, and for each kind of run an undisturbed one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from runs import EPOCHS, ForkServers, Undisturbed, Way, fork_servers, only_run, write_inputs


@pytest.fixture(scope="session")
def servers() -> Iterator[ForkServers]:
    with fork_servers() as servers:
        yield servers


@pytest.fixture(scope="session")
def undisturbed(servers: ForkServers, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Gives the run folder of a way that nothing happened to."""

    @cache
    def run(way: Way) -> Path:
        folder = tmp_path_factory.mktemp(str(way)) / "inputs"
        write_inputs(folder, way)
        statuses, said = servers.fit(folder, way)
        assert statuses == [0] * way.processes, said[-3000:]
        assert f"estimate: {EPOCHS * way.steps_per_epoch} optimizer steps" in said
        return only_run(folder)

    return run
