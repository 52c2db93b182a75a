"""`kill -9` at random moments of the demo: every restart goes on from a whole checkpoint, all end in the same bytes."""

from __future__ import annotations

import math
import os
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

import pytest
import yaml
from compare import load, run_differences
from runs import ForkServers, only_run
from safetensors.torch import load_file
from torch import equal

KILLS = 30
ROOT = Path(__file__).parents[2]


def write_demo(folder: Path) -> None:
    """The demo, cut short, with a checkpoint at every step."""
    config = yaml.safe_load((ROOT / "configs/demo.yaml").read_text(encoding="utf-8"))
    config["trainer"] |= {"limit_train_batches": 9, "limit_val_batches": 2, "num_sanity_val_steps": 0}
    config["trainer"] |= {"enable_progress_bar": False, "log_every_n_steps": 1}
    (steps,) = (callback for callback in config["trainer"]["callbacks"] if "StepCheckpoint" in callback["class_path"])
    steps["init_args"] = {"every_n_steps": 1, "keep": 2}
    config["trainer"]["callbacks"].insert(0, {"class_path": "kill_at.KillEarly"})
    config["data"] |= {"workers": 1, "cache_dir": "cache"}  # its own: a kill may fall into the encoding too
    config["auto_resume"] = True
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


@dataclass(frozen=True)
class Moment:
    """When to kill a run; unset, never.

    Attributes:
        in_save: a file operation inside a save, and how long after it; see kill_at.py.
        cpu_s: processor time, which does not depend on what else the machine does.
    """

    in_save: str = ""
    cpu_s: float = math.inf


def draw(rng: Random, in_save: bool, whole_run_cpu_s: float) -> Moment:
    """One inside a save, or one anywhere in a run that takes so long."""
    if in_save:
        return Moment(in_save=f"{rng.randint(1, 60)} {rng.choice((0, 0, rng.randint(1, 3000)))}")
    return Moment(cpu_s=rng.uniform(0.0, whole_run_cpu_s))


def fit(servers: ForkServers, folder: Path, moment: Moment) -> tuple[int, str, float]:
    """Run it, at most to that moment.

    Returns:
        Exit status, what it said, processor time in seconds.
    """
    run = servers.start(["fit", "--config", "run.yaml"], folder, environment={"KILL_IN_SAVE": moment.in_save})
    over, cpu_s = False, 0.0
    while not over and cpu_s < moment.cpu_s:
        time.sleep(0.002)
        over, cpu_s = state_of(run.pids[0])
    run.send(signal.SIGKILL)
    (status,) = run.wait()
    assert status in (0, -9), run.said()[-3000:]
    return status, run.said(), cpu_s


def state_of(pid: int) -> tuple[bool, float]:
    """Whether a process is over, and its processor time in seconds; it has not been waited for."""
    state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return state == "Z", sum(map(int, numbers[10:12])) / os.sysconf("SC_CLK_TCK")


def whole_steps(folder: Path) -> set[int]:
    """The steps of the checkpoints, each of which has to be whole: readable, and equal to the adapter beside it."""
    steps = set()
    for file in folder.glob("lightning_logs/*/checkpoints/[!.]*.ckpt"):
        checkpoint = load(file)
        adapter = load_file(file.with_suffix("") / "adapter_model.safetensors")
        saved = {name.replace(".default", "").removeprefix("model."): t for name, t in checkpoint["state_dict"].items()}
        assert all(equal(adapter[name], value) for name, value in saved.items())
        steps.add(checkpoint["global_step"])
    return steps


def check_start(said: str, whole: set[int]) -> None:
    """A run that got far enough to say where it starts from starts from the newest whole checkpoint."""
    found = re.search(r"^resuming \S+ from (.+)$", said, re.MULTILINE)
    if found and (step := re.search(r"step=(\d+)\.ckpt$", found[1])):
        assert int(step[1]) == max(whole)
    elif found or "data: " in said:
        assert not whole


def last_run(folder: Path) -> Path:
    """The run folder; a kill before it had a record leaves an empty one behind."""
    return max((folder / "lightning_logs").glob("version_*"), key=lambda run: int(run.name.removeprefix("version_")))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processor time is read from Linux's /proc")
def test_kill_anywhere(servers: ForkServers, tmp_path: Path) -> None:
    rng, kills = Random(9), Counter[bool]()
    write_demo(tmp_path / "undisturbed")
    status, _, whole_run_cpu_s = fit(servers, tmp_path / "undisturbed", Moment())
    assert status == 0
    for chain in count():
        folder = tmp_path / f"chain_{chain}"
        write_demo(folder)
        while True:
            in_save = 3 * kills[True] <= kills.total()
            moment = draw(rng, in_save, whole_run_cpu_s) if kills.total() < KILLS else Moment()
            whole = whole_steps(folder)
            status, said, _ = fit(servers, folder, moment)
            check_start(said, whole)
            if status == 0:
                break
            kills[in_save] += 1
        assert run_differences(only_run(tmp_path / "undisturbed"), last_run(folder)) == []
        if kills.total() == KILLS:
            break
    assert kills[True] >= KILLS // 3
