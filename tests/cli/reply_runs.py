"""Short runs of the demo with and without replies to held-out questions, and what their event files hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kyon_pl.cli import main

ROOT = Path(__file__).parents[2]
SHORT = [
    "--trainer.max_epochs",
    "2",
    "--trainer.limit_train_batches",
    "4",
    "--trainer.limit_val_batches",
    "1",
    "--trainer.num_sanity_val_steps",
    "0",
]
SHORT += ["--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"]
FIT = ["fit", "--config", str(ROOT / "configs/demo.yaml"), *SHORT]  # two epochs of two steps
FIT += ["--model.optimizer.init_args.lr", "0.03"]  # so that these change the replies
ON = ["--held_out.fit_rows", "3", "--held_out.max_new_tokens", "12", "--held_out.rows_per_batch", "2"]


class StoppedError(Exception):
    pass


class StopInSecondEpoch(Callback):
    """Where the environment asks for it; the settings of all runs are the same."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 3 and "STOP" in os.environ:
            raise StoppedError


def make_runs(folder: Path) -> dict[str, Path]:
    """Undisturbed with replies; without; and stopped in its second epoch and gone on with."""
    words = [*FIT, "--allow_code", __name__, f"--trainer.callbacks+={__name__}.StopInSecondEpoch"]
    with pytest.MonkeyPatch.context() as patch:
        for name, more in (("on", ON), ("off", ["--held_out", "null"]), ("resumed", ON)):
            (folder / name).mkdir()
            patch.chdir(folder / name)
            if name == "resumed":
                patch.setenv("STOP", "")
                with pytest.raises(StoppedError):
                    main([*words, *more])
                patch.delenv("STOP")
            main([*words, *more])
    return {name: folder / name / "lightning_logs/version_0" for name in ("on", "off", "resumed")}


def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Those that do not depend on the clock."""
    found = events(run)
    names = [name for name in found.Tags()["scalars"] if not name.endswith("_per_s")]
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in names}
