"""What a run writes into Lightning's loggers besides curves: texts and final metrics; and where all of it is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from kyon_pl.logs import from_here


def log_text(logger: Logger, name: str, text: str, step: int) -> None:
    """Log a text: TensorBoard's texts, a table of W&B, an artifact of MLflow, a file beside CSV metrics.

    A logger of another kind gets none. Call it on rank 0.

    Args:
        logger: of the Trainer.
        name: with slashes, such as `replies/1`.
        text: Markdown.
        step: optimizer steps so far.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(name, text, step)
    elif isinstance(logger, WandbLogger):
        logger.log_text(name, columns=["text"], data=[[text]], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(str(logger.run_id), text, f"{name}.md")
    elif isinstance(logger, CSVLogger):
        file = Path(logger.log_dir, "texts", f"{name}.md")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def log_final(logger: Logger, settings: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
    """Log the metrics of the end, which TensorBoard shows in a table with the settings.

    Args:
        logger: of the Trainer.
        settings: numbers and texts by their names; other loggers than TensorBoard have got them at the start.
        metrics: by their names.
        step: optimizer steps of the run.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(dict(settings), dict(metrics), step=step)
    else:
        logger.log_metrics(dict(metrics), step=step)


def where_logged(logger: Logger, runs: Path) -> str | None:
    """The line that names what a logger has written; None for a logger of another kind.

    Args:
        logger: of the Trainer, at the end of a run on rank 0.
        runs: the folder that holds the run folders.
    """
    if isinstance(logger, TensorBoardLogger):
        return f"curves: tensorboard --logdir {runs}"
    if isinstance(logger, CSVLogger):
        return f"metrics: {from_here(logger.experiment.metrics_file_path)}"
    if isinstance(logger, MLFlowLogger):
        command = ["mlflow", "ui", "--backend-store-uri", logger.experiment.tracking_uri]
        return f"curves: {shlex.join(command)} (run {logger.run_id})"
    if isinstance(logger, WandbLogger) and not (run := logger.experiment).disabled:
        folder = from_here(Path(run.dir).parent)
        return f"curves: {shlex.join(['wandb', 'sync', str(folder)]) if run.offline else run.url}"
    return None
