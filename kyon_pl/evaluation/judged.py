"""Win rates of judged replies, and what the results in a run folder say in reports and model cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kyon_pl.errors import CheckpointError
from kyon_pl.evaluation.held_out import table
from kyon_pl.files import entry, read_json_object

JUDGED = "judge"
"""Folder of results in a run folder: a folder for each comparison, and in it one for each judge."""
RESULT = "result.json"
RESAMPLES = 10_000
COLUMNS = ("first", "second", "judge", "wins of the second", "ties", "losses", "not judged", "win rate", "95 %")
_NOTE = "The win rate is that of the second side; a tie is half. The interval is from resampling the questions."
_SEED = 0
_OUTSIDE = 0.025  # on each side of the interval
_COUNTS = ("wins", "ties", "losses", "unjudged")


@dataclass(frozen=True)
class WinRate:
    """How often the second side is better.

    Attributes:
        wins: questions whose second reply is better.
        ties: questions whose replies are equally good.
        losses: questions whose first reply is better.
        unjudged: questions without a verdict, which the rate leaves out.
    """

    wins: int = 0
    ties: int = 0
    losses: int = 0
    unjudged: int = 0

    @property
    def judged(self) -> int:
        """Number of questions with a verdict."""
        return self.wins + self.ties + self.losses

    @property
    def rate(self) -> float | None:
        """Share of the judged questions that the second side wins, a tie being half; None if there are none."""
        return (self.wins + self.ties / 2) / self.judged if self.judged else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the rate; None if nothing is judged.

        The questions are resampled (percentile bootstrap). A question has one of three outcomes, so a resample is a
        draw from a multinomial distribution. If one side wins every question, each resample does too; the open end is
        then the exact bound of Clopper and Pearson, 0.025^(1/n).
        """
        if not self.judged:
            return None
        bound = _OUTSIDE ** (1 / self.judged)
        if self.judged in (self.wins, self.losses):
            return (bound, 1.0) if self.wins else (0.0, 1 - bound)
        shares = np.array([self.wins, self.ties, self.losses]) / self.judged
        drawn = np.random.default_rng(_SEED).multinomial(self.judged, shares, RESAMPLES)
        rates = (drawn[:, 0] + drawn[:, 1] / 2) / self.judged
        low, high = np.quantile(rates, [_OUTSIDE, 1 - _OUTSIDE])
        return float(low), float(high)

    def rate_text(self) -> str:
        """The rate in per cent, such as `61.5 %`; a dash if nothing is judged."""
        return "–" if self.rate is None else f"{self.rate:.1%}".replace("%", " %")

    def interval_text(self) -> str:
        """The interval in per cent, such as `50.0 to 72.1`; a dash if nothing is judged."""
        return " to ".join(f"{100 * end:.1f}" for end in self.interval) if self.interval else "–"

    def as_json(self) -> dict[str, Any]:
        """The counts, the rate and its interval."""
        return {**{name: getattr(self, name) for name in _COUNTS}, "win_rate": self.rate, "interval": self.interval}


@dataclass(frozen=True)
class Match:
    """A comparison of two sides.

    Attributes:
        first: name of the first side.
        second: name of the second side.
        judge: name of the judge.
        rate: of the second side.
    """

    first: str
    second: str
    judge: str
    rate: WinRate

    def cells(self) -> list[str]:
        """The line of a table under `COLUMNS`."""
        counts = [str(getattr(self.rate, name)) for name in _COUNTS]
        return [self.first, self.second, self.judge, *counts, self.rate.rate_text(), self.rate.interval_text()]


@dataclass(frozen=True)
class Judgement:
    """A result file.

    Attributes:
        matches: one; of a knockout all, in the order in which they took place.
        winner: of a knockout; empty for a comparison of two sides.
    """

    matches: tuple[Match, ...]
    winner: str = ""


def read_judgement(file: Path) -> Judgement:
    """Read a `result.json`.

    Raises:
        CheckpointError: it cannot be read, or an entry is missing or of another type.
        MissingFileError: there is no such file.
    """
    content = read_json_object(file)
    matches = entry(content, "matches", list, file)
    if not matches or not all(isinstance(match, dict) for match in matches):
        raise CheckpointError(f"{file}: matches", "it is not a list of matches", "Run kyon-pl judge again")
    judge = entry(content, "judge", str, file)
    return Judgement(tuple(_match(match, judge, file) for match in matches), entry(content, "winner", str, file))


def _match(content: Mapping[str, Any], judge: str, file: Path) -> Match:
    counts = {name: entry(content, name, int, file) for name in _COUNTS}
    if min(counts.values()) < 0:
        raise CheckpointError(str(file), "a number of questions is negative", "Run kyon-pl judge again")
    first, second = (entry(content, name, str, file) for name in ("first", "second"))
    return Match(first, second, judge, WinRate(**counts))


def card_section(run: Path, checkpoint: str) -> list[str]:
    """The section of a model card: the comparisons whose second side is a checkpoint; empty if there are none.

    A judge whose name is a path of this machine, as servers name models in folders, is named by its last part.

    Args:
        run: the run folder.
        checkpoint: name of the checkpoint's folder.
    """
    matches = [match for one in read_judgements(run)[0] if not one.winner for match in one.matches]
    own = [replace(one, judge=Path(one.judge).name) for one in matches if one.second.rpartition("/")[2] == checkpoint]
    return ["## Judged replies", f"{match_table(own)}\n\n{_NOTE}"] if own else []


def match_table(matches: Sequence[Match]) -> str:
    """Comparisons as a Markdown table."""
    return table(COLUMNS, [match.cells() for match in matches])


def read_judgements(run: Path) -> tuple[list[Judgement], list[str]]:
    """The results of a run folder, and what cannot be read.

    Args:
        run: the run folder.
    """
    found, faults = list[Judgement](), list[str]()
    for file in sorted((run / JUDGED).glob(f"*/*/{RESULT}")):
        try:
            found.append(read_judgement(file))
        except CheckpointError as error:
            faults.append(f"{file.relative_to(run)}: {error.found}")
    return found, faults
