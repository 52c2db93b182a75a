"""Rows that share their beginnings: a run killed at exact places ends at the bytes of an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from compare import run_differences
from curves import curves
from runs import EPOCHS, ForkServers, Undisturbed, Way, only_run, write_inputs

ONE, TWO = Way(1, "32-true", "shared"), Way(2, "bf16-mixed", "shared")


def kills(way: Way) -> list[str]:
    """Where the same run is killed, one after another: at the ends of epochs, inside a window, at the end."""
    batches, steps = way.batches_per_epoch, way.steps_per_epoch
    return [
        "early on_train_epoch_end 0",
        f"early on_validation_end {2 * steps}",
        "late on_train_epoch_end 1",
        f"late on_train_batch_end {2 * batches + 2}",
        f"early on_train_end {EPOCHS * steps}",
    ]


def end_in_the_same_bytes(servers: ForkServers, folder: Path, way: Way, expected: Path, places: list[str]) -> None:
    for kill in places:
        statuses, said = servers.fit(folder, way, kill)
        assert statuses == [-9] * way.processes, f"{kill} was not reached:\n{said[-3000:]}"
    statuses, said = servers.fit(folder, way)
    assert statuses == [0] * way.processes, said[-3000:]
    assert run_differences(expected, only_run(folder)) == []
    assert curves(expected) == curves(only_run(folder))


@pytest.mark.slow
def test_killed_at_the_end_of_an_epoch_and_in_the_next(
    servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    write_inputs(tmp_path / "inputs", ONE)
    end_in_the_same_bytes(servers, tmp_path / "inputs", ONE, undisturbed(ONE), kills(ONE)[2:4])


@pytest.mark.slow
@pytest.mark.parametrize("way", [ONE, TWO], ids=str)
def test_killed_everywhere(way: Way, servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path) -> None:
    shares = curves(undisturbed(way))["train/shared_share"]
    assert all(float(share) > 0.1 for _, share in shares)
    write_inputs(tmp_path / "inputs", way)
    end_in_the_same_bytes(servers, tmp_path / "inputs", way, undisturbed(way), kills(way))


@pytest.mark.slow
def test_deterministic_kernels(servers: ForkServers, tmp_path: Path) -> None:
    """Every operator of the step has a deterministic form, or torch would stop the run."""
    for name in ("undisturbed", "killed"):
        write_inputs(tmp_path / name, ONE)
        config = ONE.config()
        config["trainer"]["deterministic"] = True
        (tmp_path / name / "run.yaml").write_text(yaml.safe_dump(config))
    statuses, said = servers.fit(tmp_path / "undisturbed", ONE)
    assert statuses == [0], said[-3000:]
    expected = only_run(tmp_path / "undisturbed")
    end_in_the_same_bytes(servers, tmp_path / "killed", ONE, expected, kills(ONE)[2:4])
