"""One rank of three is lost, late, out of memory, or unlike the others: all stop, a checkpoint is whole, and the
rank is named.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import ForkServers, Run, Way, only_run, write_inputs

from kyon_pl.runs.integrity import fault_of_checkpoint

OVERLAYS = Path(__file__).parents[2] / "configs/overlay"
THREE = Way(3, accumulate=1)
TIMEOUT_SECONDS = 6
LAST = 2


def start(servers: ForkServers, folder: Path, kill_at: str = "", overlay: str = "ddp", **of_last_rank: str) -> Run:
    """With the strategy of a shipped overlay; there is no launcher that would watch over the ranks."""
    write_inputs(folder, THREE)
    words = ["fit", "--config", "run.yaml", "--config", str(OVERLAYS / f"{overlay}.yaml"), "--trainer.devices", "3"]
    words += ["--trainer.strategy.init_args.timeout", f"0:00:{TIMEOUT_SECONDS:02}"]
    return servers.start(words, folder, THREE.processes, {"KILL_AT": kill_at}, of_last_rank)


# behind checkpoints of two steps and of four -> what becomes of the last rank, and what the first one says of it
FAULTS = {
    "killed": ("SIGKILL 1", -9, "kyon-pl fit: rank 2: its process has ended"),
    "out of memory": ("OOM 1", 2, "kyon-pl fit: rank 2: its process has ended"),
    "late": ("SLEEP 30", 2, "kyon-pl fit: rank 2: no answer after up to 0:00:06"),
}


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["ddp", "fsdp"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_lost_rank(fault: str, overlay: str, servers: ForkServers, tmp_path: Path) -> None:
    what, status, message = FAULTS[fault]
    run = start(servers, tmp_path / "inputs", f"late on_train_batch_start 4 {LAST} {what}", overlay)
    statuses, said = run.wait(), run.said()
    assert statuses == [2, 2, status], said[-3000:]
    assert message in said
    logged = (only_run(tmp_path / "inputs") / "run.log").read_text(encoding="utf-8")
    assert message.removeprefix("kyon-pl fit: ") in logged  # also where the process is killed before it ends
    if fault == "out of memory":
        assert "[rank 2] kyon-pl fit: optimizer step 5" in said
    checkpoints = sorted((only_run(tmp_path / "inputs") / "checkpoints").glob("*.ckpt"))
    assert checkpoints
    assert [fault_of_checkpoint(file) for file in checkpoints] == [None] * len(checkpoints)


@pytest.mark.slow
def test_a_rank_with_other_settings(servers: ForkServers, tmp_path: Path) -> None:
    run = start(servers, tmp_path / "inputs", MORE_WORDS="--trainer.max_epochs 4")
    statuses, said = run.wait(), run.said()
    assert statuses == [2, 2, 2], said[-3000:]
    assert "kyon-pl fit: rank 2: trainer.max_epochs is 4, but 3 on rank 0." in said


@pytest.mark.slow
def test_a_rank_with_another_version(servers: ForkServers, tmp_path: Path) -> None:
    installed = tmp_path / "other/peft-0.0.1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.0.1\n")
    run = start(servers, tmp_path / "inputs", PYTHONPATH=str(installed.parent))
    statuses, said = run.wait(), run.said()
    assert statuses == [2, 2, 2], said[-3000:]
    assert "kyon-pl fit: rank 2: peft is 0.0.1, but 0." in said
