"""Loss and gradient of an optimizer step are the mean over its trained tokens, however the rows are cut."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import one_step
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from limits import HANG_S
from one_step import ONE_PROCESS, TWO_PROCESSES, train, write_inputs
from torch import Tensor

SAME = 1e-5
Results = dict[str, dict[str, Tensor]]
CONTROLS = [name for name in (ONE_PROCESS | TWO_PROCESSES) if name.endswith("mean of means")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What came of every way; the two ranks compute while this process does the ways of one."""
    folder = tmp_path_factory.mktemp("invariant")
    write_inputs(folder)
    with two_ranks(folder):
        alone = {name: train(folder, name, way) for name, way in ONE_PROCESS.items()}
    return alone | torch.load(folder / "two_processes.pt")


@contextmanager
def two_ranks(folder: Path) -> Iterator[None]:
    """Two processes as torchrun would start them, over by the end of the block."""
    settings = os.environ | {"MASTER_PORT": str(find_free_network_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, one_step.__file__, str(folder)]
    said = [folder / f"rank_{rank}.txt" for rank in range(2)]
    ranks = [
        subprocess.Popen(command, env=settings | {"LOCAL_RANK": str(rank)}, stdout=file, stderr=file)
        for rank, file in enumerate(path.open("w") for path in said)
    ]
    try:
        yield
        assert [rank.wait(timeout=HANG_S) for rank in ranks] == [0, 0], "\n".join(path.read_text() for path in said)
    finally:
        for rank in ranks:
            rank.kill()


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, in the L2 norm."""
    return float((found - expected).norm() / expected.norm())


def test_the_reference_has_a_full_and_a_partial_step(results: Results) -> None:
    """And every adapter parameter takes part in both: without B, A would have no gradient."""
    gradients = results["padded 8"]["gradients"]
    assert len(gradients) == len(results["padded 8"]["loss"]) == 2
    assert (gradients.abs() > 0).all()


@pytest.mark.parametrize("name", [name for name in (ONE_PROCESS | TWO_PROCESSES) if name not in CONTROLS])
def test_loss_and_gradient_are_the_same(results: Results, name: str) -> None:
    way, found, expected = (ONE_PROCESS | TWO_PROCESSES)[name], results[name], results["padded 8"]
    steps = 1 if way.rows == one_step.ROWS_OF_FIRST_STEP else 2
    assert len(found["gradients"]) == len(found["loss"]) == steps
    for step in range(steps):
        assert distance(found["gradients"][step], expected["gradients"][step]) <= SAME
        assert distance(found["loss"][step], expected["loss"][step]) <= SAME


@pytest.mark.parametrize("name", CONTROLS)
def test_a_mean_of_means_is_another_loss(results: Results, name: str) -> None:
    """The control: what Lightning and DDP do by themselves."""
    for step in range(2):
        assert distance(results[name]["gradients"][step], results["padded 8"]["gradients"][step]) > 100 * SAME
        assert distance(results[name]["loss"][step], results["padded 8"]["loss"][step]) > 100 * SAME
