"""W&B offline and MLflow in a folder: curves, hyperparameters and texts are there, and the last lines name them.

CSVLogger and none are in test_disturbed_run.py, TensorBoard in test_demo.py.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from kyon_pl.cli import main
from kyon_pl.logs import set_up_logging

ROOT = Path(__file__).parents[2]
FIT = ["fit", "--config", str(ROOT / "configs/demo.yaml"), "--trainer.max_steps", "2"]
FIT += ["--trainer.log_every_n_steps", "1", "--trainer.val_check_interval", "4", "--trainer.limit_val_batches", "1"]
FIT += ["--held_out.fit_rows", "1", "--held_out.max_new_tokens", "2", "--trainer.logger"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    set_up_logging()


def last_words(command: str) -> list[str]:
    """What follows a command in run.log."""
    (log,) = Path.cwd().rglob("run.log")
    (line,) = (line for line in log.read_text(encoding="utf-8").splitlines() if f"curves: {command}" in line)
    return shlex.split(line.partition(command)[2])


@pytest.mark.slow
def test_wandb_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    main([*FIT, "lightning.pytorch.loggers.WandbLogger", "--trainer.logger.offline", "true"])
    assert wandb.run.config["model.lora.r"] == 16
    summary = dict(wandb.run.summary)
    assert summary["trainer/global_step"] == 2
    assert summary["train/loss"] > 0
    assert summary["val/best_loss"] <= summary["val/loss"]
    wandb.finish()
    (folder,) = last_words("wandb sync")
    (written,) = Path(folder).glob("*.wandb")
    assert b"train/loss" in written.read_bytes()
    tables = {file.parent.name + file.name: json.loads(file.read_text()) for file in Path(folder).rglob("*.table.json")}
    (shown,) = (table["data"][0][0] for name, table in tables.items() if "what is trained" in name)
    assert "⟦" in shown
    assert any(name.startswith("replies1_") for name in tables)


@pytest.mark.slow
def test_mlflow_in_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow asks for it
    main([*FIT, "lightning.pytorch.loggers.MLFlowLogger", "--trainer.logger.save_dir", "curves"])
    uri, _, run = last_words("mlflow ui --backend-store-uri")
    assert uri == "file:curves"
    client, run = tracking.MlflowClient(uri), run.rstrip(")")
    kept = client.get_run(run).data
    assert kept.params["model.lora.r"] == "16"
    assert [point.step for point in client.get_metric_history(run, "train/loss")] == [1, 2]
    assert [point.step for point in client.get_metric_history(run, "val/loss")] == [0, 2]
    assert kept.metrics["val/best_loss"] <= kept.metrics["val/loss"]
    texts = {file.path: Path(client.download_artifacts(run, file.path)) for file in client.list_artifacts(run)}
    assert "⟦" in texts["what is trained.md"].read_text(encoding="utf-8")
    assert (texts["replies"] / "1.md").is_file()
