"""Early stopping and best checkpoints by a metric of replies, killed and gone on with: as in an undisturbed run."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from compare import run_differences
from curves import curves
from runs import ForkServers, Way, only_run

EPOCHS, STEPS_PER_EPOCH = 8, 2


def write_inputs(folder: Path, processes: int) -> None:
    """The demo with a rate that is too high: the validation loss falls at first and rises then."""
    stop = {"monitor": "val/loss", "patience": 2, "check_on_train_epoch_end": False}
    best = {
        "filename": "best-{step}",
        "monitor": "val/replies/chrf",
        "mode": "max",
        "save_top_k": 2,
        "save_on_train_epoch_end": False,
        "enable_version_counter": False,
    }
    # saved at the validation that stops the run, too: a run that goes on from there has to stop at once
    every = best | {"filename": "every-{step}", "monitor": "val/loss", "save_top_k": -1}
    callbacks = [
        ("kill_at.KillEarly", {}),
        ("kyon_pl.training.callbacks.StepCheckpoint", {"every_n_steps": 3, "keep": 2}),
        ("lightning.pytorch.callbacks.EarlyStopping", stop),
        ("lightning.pytorch.callbacks.ModelCheckpoint", best),
        ("lightning.pytorch.callbacks.ModelCheckpoint", every),
        ("kill_at.KillLate", {}),
    ]
    trainer = {
        "accelerator": "cpu",
        "devices": processes,
        "strategy": "ddp" if processes > 1 else "auto",
        "max_epochs": EPOCHS,
        "limit_train_batches": 2 * STEPS_PER_EPOCH,
        "limit_val_batches": 1,
        "accumulate_grad_batches": 2,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [{"class_path": name, "init_args": settings} for name, settings in callbacks],
    }
    model = {
        "base": "demo",
        "checkpointing": "none",
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}},
        "schedule": {"class_path": "kyon_pl.training.LinearDecay", "init_args": {"warmup_steps": 8}},
    }
    data = {
        "source": "demo",
        "validation_source": "demo",
        "max_tokens": 512,
        "tokens_per_batch": 512,
        "workers": 0,
        "processes": 1,
    }
    config = {"seed_everything": 5, "auto_resume": True, "trainer": trainer, "model": model, "data": data}
    config["held_out"] = {"fit_rows": 3, "max_new_tokens": 12}
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(config))


Undisturbed = Callable[[int], Path]


@pytest.fixture(scope="module")
def undisturbed(servers: ForkServers, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    @cache
    def run(processes: int) -> Path:
        folder = tmp_path_factory.mktemp(str(processes)) / "inputs"
        write_inputs(folder, processes)
        statuses, said = servers.fit(folder, Way(processes))
        assert statuses == [0] * processes, said[-3000:]
        return only_run(folder)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("place", ["early", "late", "in between"])
def test_kill_and_resume(
    place: str, processes: int, servers: ForkServers, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Killed once in the middle, and once around the validation that stops the run."""
    expected = undisturbed(processes)
    end = json.loads((expected / "run.json").read_text())["finished_at_step"]
    assert 3 * STEPS_PER_EPOCH <= end < EPOCHS * STEPS_PER_EPOCH  # it did stop early, and not at once
    folder = tmp_path / "inputs"
    write_inputs(folder, processes)
    last = f"early on_train_end {end}" if place == "in between" else f"{place} on_validation_end {end}"
    for kill in (f"late on_validation_end {end - STEPS_PER_EPOCH}", last):
        statuses, said = servers.fit(folder, Way(processes), kill)
        assert statuses == [-9] * processes, f"{kill} was not reached:\n{said[-3000:]}"
    statuses, said = servers.fit(folder, Way(processes))
    assert statuses == [0] * processes, said[-3000:]
    assert run_differences(expected, only_run(folder)) == []
    assert curves(expected) == curves(only_run(folder))
    history = "held_out_replies.jsonl"
    assert (expected / history).read_text() == (only_run(folder) / history).read_text()


@pytest.mark.slow
def test_the_best_checkpoints_are_the_best(undisturbed: Undisturbed) -> None:
    run = undisturbed(1)
    drawn = curves(run)["val/replies/chrf"][1:]
    kept = {torch.load(file, weights_only=True)["global_step"] for file in run.glob("checkpoints/best-*.ckpt")}
    worst_kept = min(value for step, value in drawn if step in kept)
    assert len(kept) == 2
    assert all(value <= worst_kept for step, value in drawn if step not in kept)
    losses = [value for _, value in curves(run)["val/loss"]]
    assert losses.index(min(losses)) == len(losses) - 3  # two that were no better
