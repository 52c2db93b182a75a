"""A callback that writes the replies of `kyon-pl predict` as JSONL."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from kyon_pl.disk import name_in_errors
from kyon_pl.logs import from_here

log = logging.getLogger(__name__)


class ReplyWriter(BasePredictionWriter):
    """Writes one line per prompt after each batch, so that an interrupted run keeps its replies.

    Args:
        path: the JSONL file; unset, `replies.jsonl` in the run folder. With several processes each writes its own
            file, with its rank in the name.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self.rows = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create an empty file.

        Raises:
            OSError: it names the file.
        """
        run_folder = Path(trainer.log_dir or trainer.default_root_dir)
        file = Path(self.path) if self.path else run_folder / "replies.jsonl"
        self.file = file if trainer.world_size == 1 else file.with_suffix(f".rank{trainer.global_rank}.jsonl")
        with name_in_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text("", encoding="utf-8")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[dict[str, Any]],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the replies of one batch.

        Raises:
            OSError: it names the file.
        """
        with name_in_errors(self.file), self.file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(reply, ensure_ascii=False) + "\n" for reply in prediction)
        self.rows += len(prediction)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the number of replies and the file."""
        log.info("%d replies written to %s", self.rows, from_here(self.file))
