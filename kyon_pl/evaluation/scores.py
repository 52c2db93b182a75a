"""The metrics of replies by the base and by the tuned model side by side, with a 95 % interval of the change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import quantiles

import torch
from torch import Tensor

from kyon_pl.evaluation.metrics import JudgedReply, ReplyMetrics

RESAMPLES = 400
_SEED = 0
ORDER = (
    *("chrf", "rouge_l", "bleu", "opens_with_name", "stop_rate"),
    *("repeated_4grams", "copied_share", "length_ratio", "distinct_1", "distinct_2"),
)
"""Metrics of replies in the order of reading."""
HEAD = ("", "base", "tuned", "change", "95 % of the change")
NO_VALUE = "–"


@dataclass(frozen=True)
class Score:
    """A metric.

    Attributes:
        name: as in `ReplyMetrics`, or `loss` and the like.
        base: of the base without its adapter; None if it was not asked.
        tuned: of the tuned model.
        interval: of the change, or without a base of `tuned`; None if it cannot be told from counts of questions.
    """

    name: str
    base: float | None
    tuned: float
    interval: tuple[float, float] | None = None

    def cells(self) -> list[str]:
        """The line of a table, with two decimals."""
        change = NO_VALUE if self.base is None else f"{self.tuned - self.base:+.2f}"
        base = NO_VALUE if self.base is None else f"{self.base:.2f}"
        sign = "" if self.base is None else "+"
        interval = " to ".join(f"{end:{sign}.2f}" for end in self.interval) if self.interval else NO_VALUE
        return [self.name, base, f"{self.tuned:.2f}", change, interval]


def reply_scores(tuned: Sequence[JudgedReply], base: Sequence[JudgedReply]) -> list[Score]:
    """Score the replies to the same questions, and resample the questions for the intervals (percentile bootstrap).

    Tuned and base replies are resampled together, so an interval is that of the change on the same questions (Koehn
    2004, "Statistical significance tests for machine translation evaluation"). `distinct_1` and `distinct_2` have none:
    a resample repeats questions, and so has fewer distinct n-grams.

    Args:
        tuned: a reply to each question.
        base: the base's, in the same order; empty if it was not asked.
    """
    values, of_base = (_values(replies) for replies in (tuned, base))
    questions = _States(tuned), _States(base)
    generator = torch.Generator().manual_seed(_SEED)
    drawn: dict[str, list[float]] = {}
    for _ in range(RESAMPLES if len(tuned) > 1 else 0):
        chosen = torch.randint(len(tuned), (len(tuned),), generator=generator)
        ours, theirs = (states.values(chosen) for states in questions)
        for name, value in ours.items():
            if not base or name in theirs:
                drawn.setdefault(name, []).append(value - (theirs[name] if base else 0.0))
    names = sorted(values, key=ORDER.index)
    return [Score(name, of_base.get(name), values[name], _interval(drawn.get(name, []))) for name in names]


def score_table(scores: Sequence[Score]) -> str:
    """The scores as a Markdown table; nothing in it needs to be escaped."""
    rows = [HEAD, ["---"] * len(HEAD), *(score.cells() for score in scores)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def score_lines(scores: Sequence[Score]) -> Iterator[str]:
    """The scores as lines of a terminal, in columns."""
    rows = [list(HEAD), *(score.cells() for score in scores)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]
    for name, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        yield f"  {name.ljust(widths[0])}  {'  '.join(right)}".rstrip()


def _values(replies: Sequence[JudgedReply]) -> dict[str, float]:
    metrics = ReplyMetrics(alone=True)
    metrics.update(replies)
    return metrics.compute() if replies else {}


def _interval(values: list[float]) -> tuple[float, float] | None:
    """The 2.5th and the 97.5th percentile; None unless every resample has a value."""
    if len(values) < RESAMPLES:
        return None
    cuts = quantiles(values, n=40, method="inclusive")
    return cuts[0], cuts[-1]


class _States:
    """The counts of each question, from which the metrics of any sample of the questions are computed.

    Args:
        replies: one a question.
    """

    def __init__(self, replies: Sequence[JudgedReply]) -> None:
        self.metrics = ReplyMetrics(alone=True)
        collected: dict[str, dict[str, list[Tensor]]] = {}
        for reply in replies:
            self.metrics.reset()
            self.metrics.update([reply])
            for name, counts in self.metrics.sums().items():
                for key, count in counts.items():
                    collected.setdefault(name, {}).setdefault(key, []).append(count)
        self.stacked = {
            name: {key: torch.stack(values) for key, values in counts.items()} for name, counts in collected.items()
        }

    def values(self, chosen: Tensor) -> dict[str, float]:
        """The metrics of questions, each as often as it is chosen; those that are not sums are left out."""
        if not self.stacked:
            return {}
        sums = {
            name: {key: values[chosen].sum(0) for key, values in counts.items()}
            for name, counts in self.stacked.items()
        }
        return self.metrics.compute_from(sums)
