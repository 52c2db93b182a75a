"""The opening paragraph of a report: what was trained, what got better, and what to mind."""

from __future__ import annotations

from collections.abc import Iterator

from kyon_pl.evaluation.held_out import escape_markdown
from kyon_pl.evaluation.run_folder import RunFolder

# above or below these, a reader should know
RISEN_LOSS = 1.02  # the last validation loss against the lowest one
REPEATED, STOPPED, COPIED = 0.1, 0.9, 0.5  # shares, see kyon_pl.evaluation.metrics
FEW_QUESTIONS = 20


def in_words(run: RunFolder) -> str:
    """The paragraph, as Markdown."""
    return " ".join([trained(run), *better(run), *(f"Mind: {text}." for text in to_mind(run))])


def trained(run: RunFolder) -> str:
    """What was trained, as far as the run folder says."""
    settings, step = run.settings, run.last_step
    rank = settings.get("model.lora.init_args.r", settings.get("model.lora.r"))
    adapter = f"a LoRA adapter of rank {rank}" if rank else "a LoRA adapter"
    source = settings.get("data.source")
    texts = escape_markdown(", ".join(source) if isinstance(source, list) else str(source or "unknown rows"))
    base = escape_markdown(str(settings.get("model.base") or "an unknown base"))
    return f"This run trained {adapter} for {base} on {texts}, up to optimizer step {step:,}."


def better(run: RunFolder) -> Iterator[str]:
    """The change of the loss, and of the most telling score of replies."""
    before, after = run.base_and_tuned("loss")
    if before is not None and after is not None and run.last_step:
        verb = "fell" if after < before else "rose"
        yield f"The loss on held-out rows {verb} from {before:.2f} to {after:.2f}."
    base, tuned = run.base_and_tuned("replies/chrf")
    if tuned is not None:
        beside = "" if base is None else f", and those of the base {base:.0f}"
        yield f"Its replies to held-out questions share n-grams with the true ones (chrF, of 100): {tuned:.0f}{beside}."


def to_mind(run: RunFolder) -> Iterator[str]:
    """What a reader should know before believing the numbers."""
    if run.finished_at_step is None:
        yield "the run has not finished"
    losses = [value for step, value in run.curves.get("val/loss", []) if step]
    if losses and losses[-1] > RISEN_LOSS * min(losses):
        yield f"the loss on held-out rows was lower before ({min(losses):.2f}); the best checkpoint is an earlier one"
    if not losses:
        yield "nothing was validated after the first step"
    _, repeated = run.base_and_tuned("replies/repeated_4grams")
    if repeated is not None and repeated > REPEATED:
        yield f"replies repeat themselves ({repeated:.0%} of their 4-grams occurred before)"
    _, stopped = run.base_and_tuned("replies/stop_rate")
    if stopped is not None and stopped < STOPPED:
        yield f"only {stopped:.0%} of the replies end by themselves"
    _, copied = run.base_and_tuned("replies/copied_share")
    if copied is not None and copied > COPIED:
        yield f"{copied:.0%} of the replies' characters are copied from their prompts"
    if run.replies and len(run.replies) < FEW_QUESTIONS:
        yield f"scores of replies are of {len(run.replies)} questions only"
