"""Verdicts on pairs of replies, kept as JSONL, and what they add up to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kyon_pl.errors import SettingError
from kyon_pl.evaluation.judged import Match, WinRate
from kyon_pl.judge.journal import Journal
from kyon_pl.judge.questions import Question
from kyon_pl.logs import from_here

Verdict = Literal["first", "second", "tie", "none"]
Shown = Literal["first", "second"]
ORDERS: tuple[Shown, Shown] = ("first", "second")
"""The side whose reply is shown first."""
UNDONE = "undone"
_KINDS = {"judge": str, "question": int, "pair": str, "shown": str, "verdict": str, "answer": str}
_VERDICTS = ("first", "second", "tie", "none", UNDONE)


@dataclass(frozen=True)
class Pair:
    """The replies of both sides to a question.

    Attributes:
        number: of the question.
        question: with its context.
        first: reply of the first side.
        second: reply of the second side.
    """

    number: int
    question: Question
    first: str
    second: str

    @property
    def hash(self) -> str:
        """Of both replies; a verdict belongs to it."""
        return hashlib.sha256(f"{self.first}\0{self.second}".encode("utf-8", "replace")).hexdigest()[:16]

    @property
    def same(self) -> bool:
        """Whether the replies are equal: a tie, which nobody is asked about."""
        return self.first.split() == self.second.split()

    def replies(self, shown: Shown) -> tuple[str, str]:
        """The replies in the order in which they are shown."""
        return (self.first, self.second) if shown == "first" else (self.second, self.first)


def other_side(shown: Shown) -> Shown:
    """The side that is not `shown`."""
    return "second" if shown == "first" else "first"


class Verdicts:
    """The verdicts of one judge on the pairs of two sides, and their file.

    Args:
        path: the JSONL file; it need not exist.
        judge: name of the judge.
        names: of both sides.
        pairs: all of them, in order.

    Raises:
        SettingError: the file has verdicts of another judge, or on other replies.
        CheckpointError: the file cannot be read.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, judge: str, names: tuple[str, str], pairs: Sequence[Pair]) -> None:
        self.judge, self.names, self.pairs = judge, names, pairs
        self.journal = Journal(path, _KINDS)
        self._found: dict[tuple[int, str], list[str]] = {}
        for line, row in enumerate(self.journal.rows, start=1):
            if not self._is_ours(row["judge"], row["question"], row["pair"], row["shown"], row["verdict"]):
                found = f"line {line} of {from_here(path)} is no verdict of this judge on these replies"
                raise SettingError("--output", found, "Name another folder, or remove that file")
            self._count(row["question"], row["shown"], row["verdict"])

    def _is_ours(self, judge: str, number: int, pair: str, shown: str, verdict: str) -> bool:
        known = 0 <= number < len(self.pairs) and self.pairs[number].hash == pair
        return known and judge == self.judge and shown in ORDERS and verdict in _VERDICTS

    def add(self, pair: Pair, shown: Shown, verdict: str, answer: str = "") -> None:
        """Keep a verdict.

        Args:
            pair: what was judged.
            shown: the side whose reply was shown first.
            verdict: a `Verdict`, or `UNDONE`.
            answer: what the judge said.

        Raises:
            OSError: the file cannot be written.
        """
        row = {"judge": self.judge, "question": pair.number, "pair": pair.hash}
        self.journal.append({**row, "shown": shown, "verdict": verdict, "answer": answer})
        self._count(pair.number, shown, verdict)

    def answers(self, pair: Pair, shown: Shown) -> list[str]:
        """The verdicts on a pair in one order, oldest first; those that were taken back are left out."""
        return self._found.get((pair.number, shown), [])

    def _count(self, number: int, shown: str, verdict: str) -> None:
        found = self._found.setdefault((number, shown), [])
        if verdict == UNDONE:
            found.clear()
        else:
            found.append(verdict)

    def match(self, outcomes: Iterable[str]) -> Match:
        """The comparison that some outcomes, one a question, add up to."""
        counted = [*outcomes]
        wins, ties, losses, unjudged = (counted.count(name) for name in ("second", "tie", "first", "none"))
        return Match(*self.names, self.judge, WinRate(wins, ties, losses, unjudged))


def outcome_of_orders(pair: Pair, verdicts: Verdicts) -> str:
    """The outcome of a pair that is judged in both orders: a tie if the orders disagree, none if one has no verdict."""
    if pair.same:
        return "tie"
    one, other = ((verdicts.answers(pair, shown) or ["none"])[-1] for shown in ORDERS)
    if "none" in (one, other):
        return "none"
    return one if one == other else "tie"


def outcome_by_hand(pair: Pair, verdicts: Verdicts) -> str:
    """The outcome of a pair that a person has seen in one order; `none` if it is not judged yet."""
    if pair.same:
        return "tie"
    found = [verdict for shown in ORDERS for verdict in verdicts.answers(pair, shown)]
    return found[-1] if found else "none"
