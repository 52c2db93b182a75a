"""The base shared out over two ranks (FSDP2): DDP's trajectory bit by bit, and checkpoints that change strategies."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compare import distance, run_differences
from curves import curves
from runs import EPOCHS, ForkServers, Undisturbed, Way, only_run, write_inputs

CONFIGS = Path(__file__).parents[2] / "configs"
SHARDED = ("--config", str(CONFIGS / "overlay/fsdp.yaml"), "--trainer.devices", "2")
WHOLE = ("--trainer.devices", "2")  # the run's own strategy: ddp
ONE = ("--trainer.devices", "1", "--trainer.strategy", "auto")
WAY = Way(2, "32-true", "packed")
SAME = 1e-4  # of adapters, relative in the L2 norm, where sums are made in another order


def differences(left: Path, right: Path) -> list[str]:
    """Of all checkpoints of two runs, but for the settings that are kept in them, where strategy and sharding stand."""
    of_settings = r"[ ./]config(\.yaml)?: |module_settings\.shard_base: "
    return [text for text in run_differences(left, right) if not re.search(of_settings, text)]


GOES_ON = {
    "as it was": (SHARDED, SHARDED),
    "with DDP": (SHARDED, WHOLE),
    "after DDP": (WHOLE, SHARDED),
    "in one process": (SHARDED, ONE),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", GOES_ON)
def test_killed_it_goes_on(how: str, servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Compared with an undisturbed run with DDP: every tensor, count and curve; in one process, to float32 rounding."""
    folder, (before, after) = tmp_path / "inputs", GOES_ON[how]
    write_inputs(folder, WAY)
    assert servers.fit(folder, WAY, f"late on_train_batch_end {WAY.batches_per_epoch + 2}", *before)[0] == [-9, -9]
    processes = 1 if after is ONE else 2
    statuses, said = servers.fit(folder, Way(processes), "", *after)
    assert statuses == [0] * processes, said[-3000:]
    assert ("sharded over 2 ranks" in said) == (after is SHARDED)
    assert said.count("resuming lightning_logs/version_0 from ") == 1
    runs = only_run(folder), undisturbed(WAY)
    if after is ONE:
        last = f"checkpoints/step={EPOCHS * WAY.steps_per_epoch}.ckpt"
        assert 0 < distance(*(run / last for run in runs)) <= SAME
        assert differences(*runs)  # this comparison does find rounding
    else:
        assert differences(*runs) == []
        assert curves(runs[0]) == curves(runs[1])


@pytest.mark.slow
def test_layers_that_are_computed_again(servers: ForkServers, tmp_path: Path) -> None:
    """Gathered once more for that, in half precision; each rank held half of the base, and with DDP all of it."""
    way, runs, held = Way(2, "bf16-mixed", "packed"), {}, {}
    for name, words in (("sharded", SHARDED), ("whole", WHOLE)):
        folder = tmp_path / name
        write_inputs(folder, way)
        settings = yaml.safe_load((folder / "run.yaml").read_text())
        settings["trainer"]["callbacks"].append({"class_path": "held_weights.WriteHeld"})
        (folder / "run.yaml").write_text(yaml.safe_dump(settings))
        statuses, said = servers.fit(folder, way, "", *words, "--model.checkpointing", "full")
        assert statuses == [0, 0], said[-3000:]
        runs[name] = only_run(folder)
        held[name] = [json.loads((folder / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    assert differences(runs["sharded"], runs["whole"]) == []
    assert sum(share for share, _ in held["sharded"]) == held["sharded"][0][1]
    assert all(0.4 < share / whole < 0.6 for share, whole in held["sharded"])
    assert all(share == whole for share, whole in held["whole"])


@pytest.mark.slow
def test_the_demo(servers: ForkServers, tmp_path: Path) -> None:
    """Curves, checkpoints and replies to held-out questions are those of DDP, also of a run that was killed."""
    words = ["fit", "--config", str(CONFIGS / "demo.yaml"), "--trainer.limit_train_batches", "12"]
    words += [
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.callbacks+=kill_at.KillLate",
        "--held_out.fit_rows",
        "5",
    ]
    for name, kills, more in (
        ("whole", [""], ["--config", str(CONFIGS / "overlay/ddp.yaml"), "--trainer.accelerator", "cpu"]),
        ("sharded", ["late on_train_batch_end 18", ""], ["--config", str(CONFIGS / "overlay/fsdp.yaml")]),
    ):
        (tmp_path / name).mkdir()
        for kill in kills:
            run = servers.start([*words, *more, "--trainer.devices", "2"], tmp_path / name, 2, {"KILL_AT": kill})
            assert run.wait() == ([-9, -9] if kill else [0, 0]), run.said()[-3000:]
    whole, sharded = (only_run(tmp_path / name) for name in ("whole", "sharded"))
    assert differences(sharded, whole) == []
    assert curves(sharded) == curves(whole)
    replies = [(run / "held_out_replies.jsonl").read_text() for run in (sharded, whole)]
    assert replies[0] == replies[1]


@pytest.mark.slow
def test_ranks_with_unequal_numbers_of_prompts(servers: ForkServers, tmp_path: Path) -> None:
    """They make all forward passes together, to the end of the longest reply of the rank with the most prompts."""
    prompts = ["###问题一", "###你好，请说一说你自己", "###你是谁"]
    rows = "".join(json.dumps({"context": prompt, "target": None}, ensure_ascii=False) + "\n" for prompt in prompts)
    (tmp_path / "prompts.jsonl").write_text(rows)
    words = ["predict", "--config", str(CONFIGS / "demo.yaml"), "--data.predict_source", "prompts.jsonl"]
    words += [
        "--data.validation_rows_per_batch",
        "1",
        "--replies.path",
        "replies.jsonl",
        "--model.max_new_tokens",
        "24",
    ]
    found: list[list[dict[str, Any]]] = []
    for processes, more in ((1, ()), (2, SHARDED)):
        run = servers.start([*words, *more], tmp_path, processes)
        assert run.wait() == [0] * processes, run.said()[-3000:]
        files = sorted(tmp_path.glob("replies*.jsonl"))
        assert len(files) == processes
        found.append([json.loads(line) for file in files for line in file.read_text().splitlines()])
        for file in files:
            file.unlink()
    assert sorted(found[1], key=lambda reply: reply["row"]) == found[0]
    assert len({len(reply["reply"]) for reply in found[0]}) > 1


REFUSED = {
    "trainer.inference_mode": [*SHARDED, "--trainer.inference_mode", "true"],
    "trainer.strategy: model.shard_base needs ddp": ["--model.shard_base", "true", "--trainer.strategy", "auto"],
    "trainer.strategy: fsdp is torch's first FSDP": ["--trainer.strategy", "fsdp"],
    "trainer.strategy: ModelParallelStrategy leaves": ["--config", "model_parallel.yaml"],
}


@pytest.mark.slow
def test_settings_that_would_train_something_else(servers: ForkServers, tmp_path: Path) -> None:
    write_inputs(tmp_path / "inputs", WAY)
    strategy = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}
    (tmp_path / "inputs/model_parallel.yaml").write_text(yaml.safe_dump({"trainer": {"strategy": strategy}}))
    runs = {
        where: servers.start(["fit", "--config", "run.yaml", *words], tmp_path / "inputs")
        for where, words in REFUSED.items()
    }
    assert {where: run.wait() for where, run in runs.items()} == {where: [2] for where in REFUSED}
    assert [run.said() for where, run in runs.items() if f"kyon-pl fit: {where}" not in run.said()] == []
    assert all("configs/overlay/fsdp.yaml" in run.said() for run in runs.values())
