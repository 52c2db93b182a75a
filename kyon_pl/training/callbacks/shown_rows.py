"""What is masked and what is trained, as text beside the curves."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from kyon_pl.batch import RowSource
from kyon_pl.evaluation.markdown import block


class ShownRows(Callback):
    """Logs the first rows as the model sees them, at step 0: trained text in ⟦…⟧, special tokens in ‹…›.

    Args:
        rows: how many.
    """

    def __init__(self, rows: int = 3) -> None:
        self.rows = rows

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log them, once a run."""
        source = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.global_step == 0 and trainer.is_global_zero and isinstance(source, RowSource):
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_text("what is trained", block(source.shown_rows(self.rows)), 0)
