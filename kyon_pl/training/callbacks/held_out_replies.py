"""A callback that replies to held-out questions during training, and logs the replies and their metrics."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm  # type: ignore[import-untyped]

from kyon_pl.batch import PromptBatch, RowSource
from kyon_pl.disk import write_atomically
from kyon_pl.errors import SettingError
from kyon_pl.evaluation.held_out import REPLIES, SCORES, exchange, question
from kyon_pl.evaluation.metrics import JudgedReply, ReplyMetrics
from kyon_pl.evaluation.scores import Score, reply_scores, score_lines, score_table
from kyon_pl.logs import from_here
from kyon_pl.training.loggers import log_text
from kyon_pl.training.module import ChatGLM2LoRA
from kyon_pl.training.replies import GeneratedReply, generate_texts

log = logging.getLogger(__name__)

SHOWN_STEPS = 30  # newest steps in a logger, which gets the whole table each time
SUMMARY_METRICS = ("chrf", "stop_rate", "opens_with_name")
LOSSES = ("loss", "perplexity")
SUMMARY_ROWS = 3  # rows that are logged at the end of training


@dataclass
class ReplySettings:
    """Which held-out questions are replied to, and when.

    Attributes:
        fit_rows: number of validation rows, of different questions and evenly spread, to reply to in fit.
        validate_rows: number of rows, evenly spread, to reply to in validate and test; null: all.
        every_n_validations: reply in fit at every n-th validation.
        compare_base: also reply with the base without its adapter; in fit once, before the first step.
        max_new_tokens: maximum length of a reply, in tokens.
        rows_per_batch: prompts per batch on one device.

    Raises:
        SettingError: a number is lower than 1.
    """

    fit_rows: int = 8
    validate_rows: int | None = 200
    every_n_validations: int = 1
    compare_base: bool = True
    max_new_tokens: int = 128
    rows_per_batch: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1 and not isinstance(value, bool):
                raise SettingError(f"held_out.{name}", f"{value} is too low", "Set 1 or more; held_out: null for none.")


class HeldOutReplies(Callback):
    """Replies greedily to held-out questions, and logs the replies and their metrics.

    - `val/replies/chrf` and the other metrics of `kyon_pl.evaluation.metrics`, in fit at every n-th validation, and in
      `validate` and `test` (as `test/…`). `val/base_replies/…` are the metrics of the base without its adapter, drawn
      at the same steps, as a level line to compare with.
    - `replies/1` and so on, as text: a question, its reference, the base's reply, and the model's replies step by
      step. `held_out_replies.jsonl` in the run folder holds the same.

    Training is not affected. The history of replies is saved in checkpoints and continued by a resumed run. A base
    without a tokenizer gets no replies.

    Args:
        settings: which questions are replied to, and when.
    """

    def __init__(self, settings: ReplySettings) -> None:
        self.settings = settings
        self.validations = 0
        self.rows: list[dict[str, Any]] = []
        self.of_base: dict[str, float] = {}
        self.judged: list[tuple[JudgedReply, JudgedReply | None]] = []  # tuned and base, of all ranks

    def state_dict(self) -> dict[str, Any]:
        """The history of replies, the number of validations and the metrics of the base."""
        return {"validations": self.validations, "rows": self.rows, "of_base": self.of_base}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them; checkpoints of earlier versions have no metrics of the base."""
        self.validations, self.rows = state_dict["validations"], state_dict["rows"]
        self.of_base = state_dict.get("of_base", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reply before the first step, with and without the adapter; a resumed run has done so."""
        if self.rows:
            return
        self.validations = 0
        self.rows, values = self._reply_and_score(trainer, pl_module, "validation")
        if self.rows:
            self.of_base = {name: value for name, value in values.items() if name.startswith("val/base_replies/")}
            self._log_summary(values, f"before step {trainer.global_step + 1}")
            self._log_metrics(trainer, values)
            self._save_history(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the final replies to a few questions."""
        for row in self.rows[:: max(1, len(self.rows) // SUMMARY_ROWS)][:SUMMARY_ROWS]:
            log.info("asked   %s", question(row))
            if row["base"] is not None:
                log.info("  base  %s", " ".join(row["base"].split()))
            log.info("  tuned %s", " ".join(row["replies"][-1]["reply"].split()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reply, before callbacks that monitor a metric read it."""
        if trainer.state.fn == "validate":
            self._evaluate(trainer, pl_module, "validation")
        elif trainer.state.fn == "fit" and not trainer.sanity_checking and self.rows:
            self.validations += 1
            if self.validations % self.settings.every_n_validations == 0:
                self._continue_history(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reply to test rows."""
        self._evaluate(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the table of scores in `validate`."""
        if trainer.state.fn == "validate":
            self._log_scores(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the table of scores."""
        self._log_scores(trainer, "test")

    def _continue_history(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows, values = self._reply_and_score(trainer, pl_module, "validation", with_base=False)
        for row, new in zip(self.rows, rows, strict=True):
            row["replies"] += new["replies"]
        self._log_summary(values, f"after step {trainer.global_step}")
        self._log_metrics(trainer, values | self.of_base)
        for name, value in values.items():  # for callbacks that monitor a metric
            pl_module.log(name, value, logger=False, sync_dist=True)  # the same on all ranks
        self._save_history(trainer)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, use: Literal["validation", "test"]) -> None:
        """Reply in `validate` or `test`, where Lightning logs and prints the metrics."""
        rows, values = self._reply_and_score(trainer, pl_module, use)
        for name, value in values.items():
            pl_module.log(name, value, sync_dist=True)  # the same on all ranks
        folder = trainer.log_dir  # all ranks: it is broadcast
        if rows and folder and trainer.is_global_zero:
            self._write(Path(folder), rows)
            log.info("%d replies written to %s", len(rows), from_here(Path(folder) / REPLIES))

    def _log_scores(self, trainer: Trainer, name: str) -> None:
        """Log base, tuned model and change of every metric, and write them as `scores.md`."""
        folder = trainer.log_dir  # all ranks: it is broadcast
        if not trainer.is_global_zero:
            return
        scores = [Score(key, None, float(trainer.callback_metrics[f"{name}/{key}"])) for key in LOSSES]
        title = "scores"
        if self.judged:
            scores += reply_scores([tuned for tuned, _ in self.judged], [bare for _, bare in self.judged if bare])
            title = f"scores of the replies to {len(self.judged)} held-out questions, whose rows {REPLIES} names"
        log.info("%s", title)
        for line in score_lines(scores):
            log.info("%s", line)
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_atomically(Path(folder) / SCORES, f"{title}\n\n{score_table(scores)}\n")

    def _reply_and_score(
        self, trainer: Trainer, pl_module: LightningModule, use: Literal["validation", "test"], with_base: bool = True
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """The replies of all ranks with their prompts, and the metrics by the names under which they are logged."""
        source = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, ChatGLM2LoRA)
        if pl_module.tokenizer is None or not isinstance(source, RowSource):
            return [], {}
        in_fit = trainer.state.fn == "fit"
        most = self.settings.fit_rows if in_fit else self.settings.validate_rows
        batch = source.held_out_prompts(use, most, one_a_question=in_fit)
        name = "val" if use == "validation" else "test"
        tuned = self._reply(trainer, pl_module, batch)
        judged = compare(batch, tuned)
        values = self._score(f"{name}/replies", trainer, judged)
        base: Sequence[GeneratedReply | None] = [None] * len(tuned)
        of_base: list[JudgedReply] = []
        if with_base and self.settings.compare_base:
            base = replies = self._reply(trainer, pl_module, batch, adapter=False)
            of_base = compare(batch, replies)
            values |= self._score(f"{name}/base_replies", trainer, of_base)
        if not in_fit:
            self.judged = gather([*zip_longest(judged, of_base)])
        step = trainer.global_step if in_fit else None
        rows = [
            {
                "row": batch.row_numbers[place],
                "prompt": batch.prompts[place],
                "reference": batch.references[place],
                "base": bare.text if bare else None,
                "replies": [{"step": step, "reply": reply.text, "stopped": reply.stopped}],
            }
            for place, (reply, bare) in enumerate(zip(tuned, base, strict=True))
        ]
        return sorted(gather(rows), key=lambda row: int(row["row"])), values

    def _reply(
        self, trainer: Trainer, module: ChatGLM2LoRA, batch: PromptBatch, adapter: bool = True
    ) -> list[GeneratedReply]:
        """This rank's replies, with or without the adapter, in the precision of training steps."""
        assert module.model is not None
        assert module.tokenizer is not None
        bar = trainer.progress_bar_callback
        shown = trainer.is_global_zero and bar is not None and bar.is_enabled  # type: ignore[attr-defined]
        without = nullcontext() if adapter else module.model.disable_adapter()
        with (
            without,
            trainer.precision_plugin.forward_context(),
            tqdm(
                desc="replies" if adapter else "replies of the base",
                total=len(batch.input_ids),
                leave=False,
                disable=not shown,
            ) as progress,
        ):
            return generate_texts(
                module.model,
                module.tokenizer,
                batch,
                max_new_tokens=self.settings.max_new_tokens,
                rows_per_batch=self.settings.rows_per_batch,
                sharded=module.sharded,
                on_batch=progress.update,
            )

    def _score(self, prefix: str, trainer: Trainer, replies: list[JudgedReply]) -> dict[str, float]:
        """The metrics over all ranks; every rank must call this."""
        metrics = ReplyMetrics(trainer.strategy.root_device)
        metrics.update(replies)
        return {f"{prefix}/{name}": value for name, value in metrics.compute().items()}

    def _log_summary(self, values: dict[str, float], when: str) -> None:
        """Log a few metrics, with those of the base in brackets."""
        parts = []
        for name in SUMMARY_METRICS:
            base = f" (base {values[key]:.2f})" if (key := f"val/base_replies/{name}") in values else ""
            parts += [f"{name} {values[key]:.2f}{base}"] if (key := f"val/replies/{name}") in values else []
        log.info("replies to %d held-out questions %s: %s", len(self.rows), when, ", ".join(parts))

    def _log_metrics(self, trainer: Trainer, values: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def _save_history(self, trainer: Trainer) -> None:
        """Write the history as JSONL and to the loggers; the run goes on without the file if it cannot be written."""
        folder = trainer.log_dir  # all ranks: it is broadcast
        if not trainer.is_global_zero:
            return
        if folder:
            try:
                self._write(Path(folder), self.rows)
            except OSError as error:
                log.warning(
                    "%s cannot be written (%s); the run goes on", from_here(str(error.filename)), error.strerror
                )
        for place, row in enumerate(self.rows, start=1):
            steps = [(f"step {reply['step']}", reply) for reply in row["replies"][-SHOWN_STEPS:]]
            text = exchange(row, steps)
            for logger in trainer.loggers:
                log_text(logger, f"replies/{place}", text, trainer.global_step)

    def _write(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / REPLIES, "".join(lines))


def compare(batch: PromptBatch, replies: list[GeneratedReply]) -> list[JudgedReply]:
    """The replies with what they are compared to; rows of ids have no reference, and are left out."""
    return [
        JudgedReply(reply.text, reference, memories, reply.stopped)
        for reply, reference, memories in zip(replies, batch.references, batch.memories, strict=True)
        if reference
    ]


def gather(rows: list[Any]) -> list[Any]:
    """The rows of all ranks, on every rank."""
    if not torch.distributed.is_initialized():
        return rows
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, rows)
    return [row for rank in ranks for row in rank]
