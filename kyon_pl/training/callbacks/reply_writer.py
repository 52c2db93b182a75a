"""A callback that writes the replies of `kyon-pl predict` as JSONL."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from kyon_pl.disk import name_in_errors, replace, temporary
from kyon_pl.locks import Lock
from kyon_pl.logs import from_here
from kyon_pl.outputs import Output, check_replaceable, locked, output_file, rows_with
from kyon_pl.training.replies import REPLY_KEYS

log = logging.getLogger(__name__)


class ReplyWriter(BasePredictionWriter):
    """Writes one line per prompt after each batch, so that an interrupted run keeps its replies.

    The replies of an earlier `predict` in the same file are replaced when all new ones are written. Another file is
    never replaced.

    Args:
        path: the JSONL file; unset, `replies.jsonl` in the run folder. With several processes each writes its own
            file, with its rank in the name.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self.rows = 0
        self.lock: Lock | None = None

    def output(self, trainer: Trainer) -> Output:
        """The file of this rank.

        Raises:
            SettingError: `path` is no path of this machine.
        """
        run_folder = Path(trainer.log_dir or trainer.default_root_dir)
        output = replies_output(self.path or run_folder / "replies.jsonl")
        if trainer.world_size == 1:
            return output
        path = output.path.with_suffix(f".rank{trainer.global_rank}.jsonl")
        return output_file(output.option, path, output.is_ours)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create an empty file: the output or, if that exists, a temporary file beside it.

        Raises:
            SettingError: a file that is not ours is there.
            MachineError: another process is writing the file.
        """
        output = self.output(trainer)
        with name_in_errors(output.path):
            output.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = locked(output.path, output.option)
        check_replaceable(output)
        self.final = output.path
        self.file = temporary(output.path) if output.path.exists() else output.path
        with name_in_errors(self.file):
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
        """Give the file its final name, and log it with the number of replies."""
        replace(self.file, self.final)
        self._release()
        log.info("%d replies written to %s", self.rows, from_here(self.final))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log where the replies so far are."""
        self._release()
        if self.rows:
            log.info("%d replies so far are in %s", self.rows, from_here(self.file))

    def _release(self) -> None:
        if self.lock:
            self.lock.release()


def replies_output(name: str | Path) -> Output:
    """The output of `predict`.

    Raises:
        SettingError: the name is no path of this machine.
    """
    return output_file("replies.path", name, rows_with(REPLY_KEYS))
