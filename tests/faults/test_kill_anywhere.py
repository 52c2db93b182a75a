"""`kill -9` at random moments of the demo: every restart goes on from a whole checkpoint, all end in the same bytes."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import yaml
from compare import load, run_differences
from runs import ForkServers, Run, only_run
from safetensors.torch import load_file
from torch import equal

KILLS = 30
COMMAND = ["fit", "--config", "run.yaml"]
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


def moments(rng: Random, seconds: float) -> Iterator[tuple[str, float]]:
    """Endless places to kill at: one inside a save, two at any moment of a run that takes so many seconds."""
    while True:
        yield f"{rng.randint(1, 60)} {rng.choice((0, 0, rng.randint(1, 3000)))}", 0.0
        for _ in range(2):
            yield "", rng.uniform(0.1, 1.0) * seconds


def fit(servers: ForkServers, folder: Path, in_save: str, after_s: float) -> Run:
    """Start a run that is killed in a save, or after some time, or else not at all."""
    run = servers.start(COMMAND, folder, environment={"KILL_IN_SAVE": in_save})
    if after_s:
        time.sleep(after_s)
        run.send(signal.SIGKILL)
    return run


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
    found = re.search(r"^going on with \S+ from (.+)$", said, re.MULTILINE)
    if found and (step := re.search(r"step=(\d+)\.ckpt$", found[1])):
        assert int(step[1]) == max(whole)
    elif found or "data: " in said:
        assert not whole


def last_run(folder: Path) -> Path:
    """The run folder; a kill before it had a record leaves an empty one behind."""
    return max((folder / "lightning_logs").iterdir(), key=lambda run: int(run.name.removeprefix("version_")))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_anywhere(servers: ForkServers, tmp_path: Path) -> None:
    write_demo(tmp_path / "undisturbed")
    started_s = time.perf_counter()
    assert fit(servers, tmp_path / "undisturbed", "", 0).wait() == [0]
    places = moments(Random(9), time.perf_counter() - started_s)
    kills = Counter[str]()
    for chain in range(KILLS):
        folder = tmp_path / f"chain_{chain}"
        write_demo(folder)
        while True:
            in_save, after_s = next(places) if kills.total() < KILLS else ("", 0.0)
            whole = whole_steps(folder)
            T=time.time()
            run = fit(servers, folder, in_save, after_s)
            (status,) = run.wait()
            assert status in (0, -9), run.said()[-3000:]
            print(chain, in_save, after_s, status, whole, time.time()-T, [l for l in run.said().splitlines() if "going" in l or "skipped" in l], sorted(p.name for p in folder.glob("lightning_logs/*/checkpoints/.*")),flush=True)
            check_start(run.said(), whole)
            if status == 0:
                break
            kills["inside a save" if in_save else "anywhere"] += 1
        assert run_differences(only_run(tmp_path / "undisturbed"), last_run(folder)) == []
        if kills.total() >= KILLS:
            break
    assert kills["inside a save"] >= KILLS // 3
