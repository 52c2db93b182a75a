"""Replies to held-out questions while a model learns: their metrics, and what it says in words."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tqdm import tqdm  # type: ignore[import-untyped]

from kyon_pl.batch import PromptBatch, RowSource
from kyon_pl.errors import SettingError
from kyon_pl.evaluation.held_out import REPLIES, exchange, question
from kyon_pl.evaluation.metrics import JudgedReply, ReplyMetrics
from kyon_pl.logs import from_here
from kyon_pl.runs.checkpoint_io import write_whole
from kyon_pl.training.module import ChatGLM2LoRA, GeneratedReply

log = logging.getLogger(__name__)

SHOWN_STEPS = 30  # of a history, the newest: TensorBoard gets the whole table each time
TOLD = ("chrf", "stop_rate", "opens_with_name")
TOLD_ROWS = 3  # at the end, with what the base says


@dataclass
class ReplySettings:
    """Which held-out questions are replied to, and when.

    Attributes:
        fit_rows: validation rows of different questions, evenly spread, that each validation of fit replies to.
        validate_rows: rows that validate and test reply to, evenly spread; null: all.
        every_n_validations: reply in fit at every so many validations.
        compare_base: let the base without its adapter reply too: in fit once, before the first step.
        max_new_tokens: the longest reply, in tokens.
        rows_per_batch: prompts a batch on one device.

    Raises:
        SettingError: a number that is too low.
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
    """Replies greedily to held-out questions and logs what the replies are worth, and the replies themselves.

    - `val/replies/chrf` and the other names of `kyon_pl.evaluation.metrics`, at each due validation of fit; with
      `validate` and `test` as `val/…` and `test/…`. `val/base_replies/…` are those of the base without its adapter.
    - `replies/1` and so on, as text: a question, its reference, the base's reply, and below them step by step the
      replies of the model. It is the same in `held_out_replies.jsonl` in the run folder.

    Nothing of it changes what is trained. The history goes into checkpoints, so that a resumed run goes on with it.
    A base without a tokenizer cannot reply.
    """

    def __init__(self, settings: ReplySettings) -> None:
        self.settings = settings
        self.validations = 0
        self.rows: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """The history, and where in it the next validation falls."""
        return {"validations": self.validations, "rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a history."""
        self.validations, self.rows = state_dict["validations"], state_dict["rows"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the base reply, and the model as it starts; a resumed run has that in its history."""
        if self.rows:
            return
        self.validations = 0
        self.rows, values = self._judge(trainer, pl_module, "validation")
        if self.rows:
            self._say(values, f"before step {trainer.global_step + 1}")
            self._log_values(trainer, values)
            self._show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what a few questions are answered with now."""
        spread = self.rows[:: max(1, len(self.rows) // TOLD_ROWS)][:TOLD_ROWS]
        for row in spread:
            log.info("asked   %s", question(row))
            if row["base"] is not None:
                log.info("  base  %s", " ".join(row["base"].split()))
            log.info("  tuned %s", " ".join(row["replies"][-1]["reply"].split()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reply; before callbacks that stop or save by a metric look at it."""
        if trainer.state.fn == "validate":
            self._evaluate(trainer, pl_module, "validation")
        elif trainer.state.fn == "fit" and not trainer.sanity_checking and self.rows:
            self.validations += 1
            if self.validations % self.settings.every_n_validations == 0:
                self._follow(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reply."""
        self._evaluate(trainer, pl_module, "test")

    def _follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One more step of the history."""
        rows, values = self._judge(trainer, pl_module, "validation", with_base=False)
        for row, new in zip(self.rows, rows, strict=True):
            row["replies"] += new["replies"]
        self._say(values, f"after step {trainer.global_step}")
        self._log_values(trainer, values)
        for name, value in values.items():  # for callbacks that choose by a metric
            pl_module.log(name, value, logger=False, sync_dist=True)  # the same on all ranks
        self._show(trainer)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, use: Literal["validation", "test"]) -> None:
        """With `validate` and `test`: once, and Lightning logs and prints."""
        rows, values = self._judge(trainer, pl_module, use)
        for name, value in values.items():
            pl_module.log(name, value, sync_dist=True)  # the same on all ranks
        folder = trainer.log_dir  # all ranks: it is broadcast
        if rows and folder and trainer.is_global_zero:
            self._write(Path(folder), rows)
            log.info("%d replies written to %s", len(rows), from_here(Path(folder) / REPLIES))

    def _judge(
        self, trainer: Trainer, pl_module: LightningModule, use: Literal["validation", "test"], with_base: bool = True
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Replies of all ranks with their prompts, and the metrics by the names that they are logged under."""
        source = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, ChatGLM2LoRA)
        if pl_module.tokenizer is None or not isinstance(source, RowSource):
            return [], {}
        in_fit = trainer.state.fn == "fit"
        most = self.settings.fit_rows if in_fit else self.settings.validate_rows
        batch = source.held_out_prompts(use, most, one_a_question=in_fit)
        name = "val" if use == "validation" else "test"
        tuned = self._reply(trainer, pl_module, batch)
        values = self._values(f"{name}/replies", trainer, batch, tuned)
        base: Sequence[GeneratedReply | None] = [None] * len(tuned)
        if with_base and self.settings.compare_base:
            base = replies = self._reply(trainer, pl_module, batch, adapter=False)
            values |= self._values(f"{name}/base_replies", trainer, batch, replies)
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
        return sorted(gathered(rows), key=lambda row: int(row["row"])), values

    def _reply(
        self, trainer: Trainer, module: ChatGLM2LoRA, batch: PromptBatch, adapter: bool = True
    ) -> list[GeneratedReply]:
        """This rank's replies, with or without the adapter; in the precision that steps have."""
        assert module.model is not None
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
            return module.reply(
                batch,
                max_new_tokens=self.settings.max_new_tokens,
                rows_per_batch=self.settings.rows_per_batch,
                on_batch=progress.update,
            )

    def _values(
        self, prefix: str, trainer: Trainer, batch: PromptBatch, replies: list[GeneratedReply]
    ) -> dict[str, float]:
        """The metrics over all ranks; every rank has to come here."""
        metrics = ReplyMetrics(trainer.strategy.root_device)
        metrics.update(
            [
                JudgedReply(reply.text, reference, memories, reply.stopped)
                for reply, reference, memories in zip(replies, batch.references, batch.memories, strict=True)
                if reference  # a row of ids has none
            ]
        )
        return {f"{prefix}/{name}": value for name, value in metrics.compute().items()}

    def _say(self, values: dict[str, float], when: str) -> None:
        """A few of the values, the base's in brackets."""
        told = []
        for name in TOLD:
            base = f" (base {values[key]:.2f})" if (key := f"val/base_replies/{name}") in values else ""
            told += [f"{name} {values[key]:.2f}{base}"] if (key := f"val/replies/{name}") in values else []
        log.info("replies to %d held-out questions %s: %s", len(self.rows), when, ", ".join(told))

    def _log_values(self, trainer: Trainer, values: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def _show(self, trainer: Trainer) -> None:
        folder = trainer.log_dir  # all ranks: it is broadcast
        if not trainer.is_global_zero:
            return
        if folder:
            self._write(Path(folder), self.rows)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for place, row in enumerate(self.rows, start=1):
                    steps = [(f"step {said['step']}", said) for said in row["replies"][-SHOWN_STEPS:]]
                    logger.experiment.add_text(f"replies/{place}", exchange(row, steps), trainer.global_step)

    def _write(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / REPLIES, "".join(lines))


def gathered(rows: list[Any]) -> list[Any]:
    """Those of all ranks, on every rank."""
    if not torch.distributed.is_initialized():
        return rows
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, rows)
    return [row for rank in ranks for row in rank]
