"""A run through whatever may happen to it, in any order: in the end it has the bytes of an undisturbed one.

hypothesis draws the order, and makes it shorter if something is wrong: training that is killed, inside a save too, or
stopped, checkpoints that are damaged, rubbish, a moved folder, and commands that read the run in between.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from compare import load, run_differences
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from hypothesis.strategies import integers, sampled_from
from runs import ForkServers, only_run
from test_kill_anywhere import last_run, write_demo

from kyon_pl.cli import main
from kyon_pl.runs.integrity import fault_of_checkpoint, size_and_sha256

BATCHES = 27  # micro-batches of the whole run
EXAMPLES = int(os.environ.get("KYON_LIFE_EXAMPLES", "0"))
"""Set, so many lives are tried, and others each time; else the same few."""
LIVES = settings(
    max_examples=EXAMPLES or 3,
    stateful_step_count=7,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


class Life(RuleBasedStateMachine):
    """One run folder, and what is known of it."""

    servers: ClassVar[ForkServers]
    undisturbed: ClassVar[Path]
    merged: ClassVar[dict[int, str]] = {}  # step: digest of the merged weights, over all lives

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory(prefix="kyon_pl-life-")
        self.folder = Path(self.place.name) / "0"
        self.outputs, self.finished = 0, False
        write_demo(self.folder)

    def fit(self, **environment: str) -> int:
        run = self.servers.start(["fit", "--config", "run.yaml"], self.folder, environment=environment)
        (status,) = run.wait()
        assert status in (0, -9, 143), run.said()[-3000:]
        assert not self.finished or (status == 0 and "finished" in run.said())
        self.finished = status == 0
        return status

    def command(self, *words: str) -> None:
        with inside(self.folder):
            main([*words])

    @rule(when=sampled_from(["early", "late"]), batch=integers(0, BATCHES - 1))
    def killed(self, when: str, batch: int) -> None:
        self.fit(KILL_AT=f"{when} on_train_batch_end {batch}")

    @rule(operation=integers(1, 60), microseconds=sampled_from([0, 0, 300, 2000]))
    def killed_in_a_save(self, operation: int, microseconds: int) -> None:
        self.fit(KILL_IN_SAVE=f"{operation} {microseconds}")

    @rule(batch=integers(0, BATCHES - 1))
    def stopped(self, batch: int) -> None:
        self.fit(KILL_AT=f"early on_train_batch_end {batch} 0 SIGTERM 1")

    @precondition(lambda self: len(self.steps()) > 1 and not self.finished)
    @rule(part=sampled_from([0.0, 0.5, 0.99]))
    def newest_checkpoint_is_cut(self, part: float) -> None:
        file = last_run(self.folder) / f"checkpoints/step={max(self.steps())}.ckpt"
        content = file.read_bytes()
        file.write_bytes(content[: int(part * len(content))])

    @precondition(lambda self: self.steps())
    @rule()
    def rubbish(self) -> None:
        (last_run(self.folder) / "checkpoints/.step=99.ckpt.writing").write_bytes(b"half")

    @rule()
    def moved(self) -> None:
        self.folder = self.folder.rename(self.folder.with_name(str(int(self.folder.name) + 1)))

    @precondition(lambda self: self.steps())
    @rule()
    def merges(self) -> None:
        """The same step has the same weights in every life."""
        self.outputs += 1
        run, output = last_run(self.folder), self.folder / f"merged-{self.outputs}"
        self.command("merge", "--adapter", str(run), "--which", "last", "--output", str(output))
        digest = size_and_sha256(output / "model.safetensors")["sha256"]
        assert self.merged.setdefault(max(self.steps()), digest) == digest

    @precondition(lambda self: self.steps())
    @rule()
    def is_shown_for_the_hub(self) -> None:
        before = {path: path.read_bytes() for path in last_run(self.folder).rglob("*") if path.is_file()}
        self.command(
            "push", "--adapter", str(last_run(self.folder)), "--which", "last", "--repo_id", "me/x", "--dry_run", "true"
        )
        assert before == {path: path.read_bytes() for path in last_run(self.folder).rglob("*") if path.is_file()}

    def steps(self) -> set[int]:
        """Of the checkpoints that are whole."""
        steps = set()
        for file in self.folder.glob("lightning_logs/*/checkpoints/step=*.ckpt"):
            if fault_of_checkpoint(file) is None:
                steps.add(load(file)["global_step"])
        return steps

    def teardown(self) -> None:
        assert self.fit() == 0
        assert run_differences(self.undisturbed, last_run(self.folder)) == []
        self.place.cleanup()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whatever_happens(servers: ForkServers, tmp_path: Path) -> None:
    write_demo(tmp_path / "undisturbed")
    assert servers.start(["fit", "--config", "run.yaml"], tmp_path / "undisturbed").wait() == [0]
    Life.servers, Life.undisturbed = servers, only_run(tmp_path / "undisturbed")
    run_state_machine_as_test(Life, settings=LIVES)
