"""The opening paragraph of a report, and what to note about the run."""

from __future__ import annotations

from collections.abc import Iterator

from kyon_pl.evaluation.report_messages import Words
from kyon_pl.evaluation.run_folder import RunFolder

# above or below these, a reader should know
RISEN_LOSS = 1.02  # the last validation loss against the lowest one
REPEATED, STOPPED, COPIED = 0.1, 0.9, 0.5  # shares, see kyon_pl.evaluation.metrics
FEW_QUESTIONS = 20


def in_words(run: RunFolder, words: Words) -> str:
    """The paragraph."""
    return words["space"].join([_trained(run, words), _state(run, words), *_better(run, words)])


def short_state(run: RunFolder, words: Words) -> str:
    """Whether the run has finished; if not, its last step."""
    if run.scored:
        return words["scores_only"]
    if run.finished_at_step is not None:
        return words["finished"].format(step=run.finished_at_step)
    return words["unfinished"].format(step=run.last_step)


def notes(run: RunFolder, words: Words) -> Iterator[str]:
    """What a reader should know before believing the numbers."""
    if run.finished_at_step is None and run.log and not run.scored:
        yield words["note_last_line"].format(line=run.log[-1].text)
    losses = [(step, value) for step, value in run.curves.get("val/loss", []) if step]
    if losses:
        step, lowest = min(losses, key=lambda point: point[1])
        if losses[-1][1] > RISEN_LOSS * lowest:
            yield words["note_risen"].format(lowest=lowest, step=step)
    repeated, stopped, copied = (
        run.base_and_tuned(f"replies/{name}")[1] for name in ("repeated_4grams", "stop_rate", "copied_share")
    )
    if repeated is not None and repeated > REPEATED:
        yield words["note_repeats"].format(share=repeated)
    if stopped is not None and stopped < STOPPED:
        yield words["note_stops"].format(share=stopped)
    if copied is not None and copied > COPIED:
        yield words["note_copies"].format(share=copied)
    if run.replies and len(run.replies) < FEW_QUESTIONS:
        yield words["note_few"].format(count=len(run.replies))


def _trained(run: RunFolder, words: Words) -> str:
    """What was trained, as far as the run folder says."""
    settings = run.settings
    rank = settings.get("model.lora.r")
    source = settings.get("data.source")
    texts = words["and"].join(map(str, source)) if isinstance(source, list) else str(source or words["unknown_texts"])
    return words["scored" if run.scored else "trained"].format(
        adapter=words["adapter_of_rank"].format(rank=rank) if rank else words["adapter"],
        base=settings.get("model.base") or words["unknown_base"],
        texts=texts,
    )


def _state(run: RunFolder, words: Words) -> str:
    if run.scored:
        return words["state_scored"]
    if run.finished_at_step is not None:
        return words["state_finished"].format(step=run.finished_at_step)
    return words["state_unfinished"].format(step=run.last_step)


def _better(run: RunFolder, words: Words) -> Iterator[str]:
    """The change of the loss, and of the most telling score of replies."""
    before, after = run.base_and_tuned("loss")
    if before is not None and after is not None and run.last_step:
        yield words["fell" if after < before else "rose"].format(before=before, after=after)
    base, tuned = run.base_and_tuned("replies/chrf")
    if tuned is not None:
        yield words["chrf_alone" if base is None else "chrf_both"].format(tuned=tuned, base=base)
