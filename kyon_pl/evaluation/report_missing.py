"""Why a report lacks something, as far as the run's settings and state tell."""

from __future__ import annotations

from collections.abc import Iterator

from kyon_pl.evaluation.held_out import REPLIES
from kyon_pl.evaluation.report_messages import Words
from kyon_pl.evaluation.run_folder import RunFolder

_NO_VALIDATION_ROWS = "data: no validation rows"  # of a warning in run.log


def missing(run: RunFolder, words: Words) -> Iterator[str]:
    """A sentence for each thing that is missing, with the reason."""
    yield from (words["missing_file"].format(file=name) for name in run.absent)
    yield from (words["missing_unreadable"].format(detail=detail) for detail in run.missing)
    if run.scored:
        return
    if not run.curves:
        yield words["missing_curves"].format(why=_why_no_curves(run, words))
    elif not validation_steps(run):
        yield words["missing_validation"].format(why=_why_no_validation(run, words))
    yield from _scores(run, words)
    if not run.replies:
        if not any(detail.startswith(REPLIES) for detail in run.missing):
            yield words["missing_replies"].format(why=_why_no_replies(run, words))
    elif all(row["base"] is None for row in run.replies):
        yield words["missing_base_replies"]


def validation_steps(run: RunFolder) -> list[int]:
    """The optimizer steps with a validation, without the one before the first step."""
    return [step for step, _ in run.curves.get("val/loss", []) if step]


def _scores(run: RunFolder, words: Words) -> Iterator[str]:
    """The base's loss, the test loss and the memory."""
    steps = run.settings.get("trainer.num_sanity_val_steps")
    if validation_steps(run) and run.base_and_tuned("loss")[0] is None and steps != -1 and run.settings:
        yield words["missing_base_loss"].format(steps=steps)
    if run.settings and "test/loss" not in run.curves:
        yield words["missing_test" if run.settings.get("data.test_source") else "missing_test_unset"]
    if run.curves and run.settings.get("trainer.accelerator") == "cpu":
        yield words["missing_memory"]


def _why_no_curves(run: RunFolder, words: Words) -> str:
    settings = run.settings
    if not settings:
        return words["why_no_settings"]
    logger = settings.get("trainer.logger.class_path")
    if settings.get("trainer.logger") is False:
        return words["why_no_logger"]
    if isinstance(logger, str) and not logger.endswith("TensorBoardLogger"):
        return words["why_other_logger"].format(logger=logger.rpartition(".")[2])
    return words["why_before_curves" if run.finished_at_step is None else "why_no_event_files"]


def _why_no_validation(run: RunFolder, words: Words) -> str:
    settings = run.settings
    if not settings:
        return words["why_no_settings"]
    if settings.get("trainer.limit_val_batches") == 0:
        return words["why_limit"]
    if rows := _why_no_rows(run, words):
        return rows
    if run.finished_at_step is None:
        return words["why_stopped"].format(step=run.last_step)
    interval, epochs = settings.get("trainer.val_check_interval"), settings.get("trainer.check_val_every_n_epoch")
    if isinstance(interval, int) and interval > 1:
        return words["why_interval"].format(step=run.last_step, interval=interval)
    if isinstance(epochs, int) and epochs > 1:
        return words["why_epochs"].format(epochs=epochs)
    return words["why_unknown"]


def _why_no_rows(run: RunFolder, words: Words) -> str | None:
    """Why there are no validation rows; None if there are some."""
    settings = run.settings
    share = settings.get("data.validation_share")
    if settings.get("data.validation_source") is None and share in (None, 0):
        return words["why_no_rows"].format(share=share)
    if any(line.text.startswith(_NO_VALIDATION_ROWS) for line in run.last_start()):
        return words["why_no_rows_left"]
    return None


def _why_no_replies(run: RunFolder, words: Words) -> str:
    settings = run.settings
    if any(tag.startswith("val/replies/") for tag in run.curves):
        return words["why_no_reply_file"]
    if not settings:
        return words["why_no_settings"]
    if settings.get("held_out", ...) is None:
        return words["why_held_out"]
    if _why_no_rows(run, words):
        return words["why_no_held_out_rows"]
    return words["why_before_replies" if run.finished_at_step is None else "why_no_tokenizer"]
