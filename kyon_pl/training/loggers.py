"""What a run writes into Lightning's loggers besides curves: texts and settings; and where all of it is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch.utils.tensorboard.summary import hparams

from kyon_pl.logs import from_here

CALLBACKS = "trainer.callbacks"  # a list, which is no hyperparameter
# of TensorBoard's HParams tab, by short names. TensorBoard sorts them, shows the first five at first, and takes the
# columns of all runs from one of them; so every run has all columns
COLUMNS = {
    "alpha": "model.lora.init_args.lora_alpha",
    "base": "model.base",
    "batching": "data.batching",
    "learning rate": "model.optimizer.init_args.lr",
    "max tokens": "data.max_tokens",
    "precision": "trainer.precision",
    "quantization": "model.quantization",
    "rank": "model.lora.init_args.r",
    "seed": "seed_everything",
    "source": "data.source",
}
_UNSET = "none"
# of TensorBoard's Custom Scalars tab, in the order of reading; its Scalars tab has all curves by their names
LAYOUT: dict[str, dict[str, list[Any]]] = {
    "1 loss": {
        "val/loss and train/loss": ["Multiline", ["val/loss", "train/loss"]],
        "perplexity": ["Multiline", ["val/perplexity"]],
    },
    "2 replies to held-out questions, and the base's": {
        name: ["Multiline", [f"val/replies/{name}", f"val/base_replies/{name}"]]
        for name in ("chrf", "opens_with_name", "stop_rate", "repeated_4grams")
    },
    "3 speed and memory": {
        "tokens a second": ["Multiline", ["train/tokens_per_s", "train/trained_tokens_per_s"]],
        "peak GPU memory, GiB": ["Multiline", ["train/peak_gpu_memory_gib"]],
    },
}
# where it is, unless another TensorBoard runs: few points, such as those of a validation, are wrong when smoothed
FIRST_PAGE = "http://localhost:6006/#custom_scalars&_smoothingWeight=0"


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


def log_layout(logger: Logger, without: Sequence[str]) -> None:
    """Write the layout of TensorBoard's Custom Scalars tab. Other loggers have no such tab. Call it on rank 0.

    Args:
        logger: of the Trainer.
        without: beginnings of the names of curves that this run does not draw; charts without a curve are left out.
    """
    if isinstance(logger, TensorBoardLogger):
        shown = {
            category: {
                title: chart
                for title, chart in charts.items()
                if not all(str(tag).startswith(tuple(without)) for tag in chart[1])
            }
            for category, charts in LAYOUT.items()
        }
        logger.experiment.add_custom_scalars({category: charts for category, charts in shown.items() if charts})


def log_comparison(
    logger: Logger, settings: Mapping[str, str], size: Mapping[str, float | None], curves: Sequence[str], step: int
) -> None:
    """Write the row of a run in TensorBoard's HParams tab, which shows the last values of curves.

    Other loggers have no such table.

    Args:
        logger: of the Trainer.
        settings: each as JSON by its dotted name; those of `COLUMNS` are shown.
        size: numbers of the run that are no settings, by the names of their columns; None: unknown.
        curves: their names.
        step: optimizer steps of the run.
    """
    if isinstance(logger, TensorBoardLogger):
        values = {column: json.loads(settings.get(key, "null")) for column, key in COLUMNS.items()} | dict(size)
        shown = {column: _UNSET if value is None else _plain(value) for column, value in values.items()}
        for summary in hparams(shown, dict.fromkeys(curves, 0.0)):  # type: ignore[no-untyped-call]
            logger.experiment.file_writer.add_summary(summary, step)


def all_settings(settings: Mapping[str, str]) -> dict[str, float | str]:
    """The settings of model, data and trainer that are set, by their command-line names.

    Args:
        settings: each as JSON by its dotted name.
    """
    own = {key: json.loads(text) for key, text in settings.items() if key.startswith(("model.", "data.", "trainer."))}
    return {
        key.replace(".init_args", ""): _plain(value)
        for key, value in own.items()
        if value not in (None, [], {}, "") and value is not False and key != CALLBACKS
    }


def _plain(value: Any) -> float | str:
    return value if isinstance(value, int | float | str) else json.dumps(value, ensure_ascii=False)


def where_logged(logger: Logger, runs: Path) -> str | None:
    """The line that names what a logger has written; None for a logger of another kind.

    Args:
        logger: of the Trainer, at the end of a run on rank 0.
        runs: the folder that holds the run folders.
    """
    if isinstance(logger, TensorBoardLogger):
        return f"curves: tensorboard --logdir {runs} (open {FIRST_PAGE})"
    if isinstance(logger, CSVLogger):
        return f"metrics: {from_here(logger.experiment.metrics_file_path)}"
    if isinstance(logger, MLFlowLogger):
        command = ["mlflow", "ui", "--backend-store-uri", logger.experiment.tracking_uri]
        return f"curves: {shlex.join(command)} (run {logger.run_id})"
    if isinstance(logger, WandbLogger) and not (run := logger.experiment).disabled:
        folder = from_here(Path(run.dir).parent)
        return f"curves: {shlex.join(['wandb', 'sync', str(folder)]) if run.offline else run.url}"
    return None
