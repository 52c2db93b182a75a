"""Steps of four micro-batches on 1, 2 and 4 processes, and a run that goes from 4 to 2 to 1: one trajectory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from compare import distance
from curves import curves
from runs import LONGEST_ROW, ForkServers, Way, only_run, write_inputs

from kyon_pl.doctor.cuts import AUTO_SETTINGS

SAME = 1e-4  # of the adapter, relative in the L2 norm: sums in float32 in another order, with dropout, over 50 steps
FOUR = Way(4, accumulate=1)
STEPS = 50
LONG = ("--trainer.max_epochs", "17", "--trainer.max_steps", str(STEPS), "--trainer.log_every_n_steps", "3")

Fit = Callable[..., Path]


@pytest.fixture(scope="module")
def fit(servers: ForkServers, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Gives the run folder of a way that nothing happened to, run for 50 steps."""

    @cache
    def run(way: Way, *words: str) -> Path:
        folder = tmp_path_factory.mktemp("long") / "inputs"
        write_inputs(folder, way)
        statuses, said = servers.fit(folder, way, "", *LONG, *words)
        assert statuses == [0] * way.processes, said[-3000:]
        return only_run(folder)

    return run


def apart(left: Path, right: Path) -> float:
    """The final adapters of two runs."""
    return distance(*(run / f"checkpoints/step={STEPS}.ckpt" for run in (left, right)))


@pytest.mark.slow
def test_processes_and_accumulation_are_interchangeable(fit: Fit) -> None:
    """And with the mean of means, which Lightning and DDP compute by themselves, they are not."""
    for way in (Way(1, accumulate=4), Way(2, accumulate=2)):
        assert apart(fit(way), fit(FOUR)) <= SAME
    means = fit(Way(1, accumulate=4), "--model.loss_normalization", "batch")
    assert apart(means, fit(FOUR)) > 100 * SAME


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_processes(servers: ForkServers, fit: Fit, tmp_path: Path) -> None:
    """Killed in the middle of an epoch, twice; nothing but the number of processes is changed."""
    folder = tmp_path / "inputs"
    write_inputs(folder, FOUR)
    # checkpoints are made at every second step; the micro-batch of a process that kills it is counted in its own
    for processes, kill_at in ((4, "late on_train_batch_end 17"), (2, "late on_train_batch_end 60"), (1, "")):
        words = ("--trainer.devices", str(processes))
        statuses, said = servers.fit(folder, Way(processes), kill_at, *LONG, *words)
        assert statuses == [-9 if kill_at else 0] * processes, said[-3000:]
        accumulated = f"accumulation: {4 // processes} instead of 1, so that on {processes} devices"
        assert (accumulated in said) == (processes < 4), said[-3000:]
        assert said.count("resuming lightning_logs/version_0 from ") == (processes < 4)
    assert apart(only_run(folder), fit(FOUR)) <= SAME
    found, expected = (dict(curves(run)["train/loss"]) for run in (only_run(folder), fit(FOUR)))
    assert list(expected) == [*range(3, STEPS, 3), STEPS]  # an entry holds steps from before a kill and from after it
    assert found == pytest.approx(expected, rel=SAME)


@pytest.mark.slow
def test_a_number_of_processes_that_cannot_share_a_step(servers: ForkServers, fit: Fit) -> None:
    run = fit(FOUR)
    folder = run.parents[1]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = ("--ckpt_path", "last", "--allow_changed_settings", "true", "--trainer.devices", "3")
    statuses, said = servers.fit(folder, Way(3), "", *LONG, *words)
    assert statuses == [2, 2, 2], said[-3000:]
    assert "kyon-pl fit: trainer.devices: the resumed run has 4 micro-batches per optimizer step" in said
    assert "Use one of these numbers of devices: 1, 2, 4;" in said
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


AUTO = ("--data.batching", "packed", "--data.tokens_per_step", str(8 * LONGEST_ROW), "--trainer.strategy", "auto")
AUTO += tuple(word for name in AUTO_SETTINGS for word in (f"--{name}", "auto"))


@pytest.mark.slow
def test_a_run_whose_numbers_are_auto_goes_on_with_fewer_processes(
    servers: ForkServers, fit: Fit, tmp_path: Path
) -> None:
    """Killed twice: the accumulation is chosen again where the recorded one does not make the step."""
    folder = tmp_path / "inputs"
    write_inputs(folder, FOUR)
    for processes, kill_at in ((4, "late on_train_batch_end 17"), (2, "late on_train_batch_end 90"), (1, "")):
        words = (*LONG, *AUTO, "--trainer.devices", str(processes))
        statuses, said = servers.fit(folder, Way(processes), kill_at, *words)
        assert statuses == [-9 if kill_at else 0] * processes, said[-3000:]
        assert f"trainer.accumulate_grad_batches: {8 // processes} (auto)" in said
        assert said.count("resuming lightning_logs/version_0 from ") == (processes < 4)
    undisturbed = fit(FOUR, *AUTO)
    assert apart(only_run(folder), undisturbed) <= SAME
    found, expected = (dict(curves(run)["train/loss"]) for run in (only_run(folder), undisturbed))
    assert found == pytest.approx(expected, rel=SAME)
