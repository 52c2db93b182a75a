"""What `kyon-pl build-data` read, dropped and wrote."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kyon_pl.data.reading.quality import ODDITIES, Oddity, bits, names
from kyon_pl.preview.histogram import bar_lines
from kyon_pl.roles.dialogues import Dropped, Made

_SHOWN_PLACES = 5
_SHOWN_NAMES = 5


@dataclass
class BuildReport:
    """Counts what happens. What was read is what is kept and what is dropped.

    Attributes:
        unit: in which lengths are given, `characters` or `tokens`.
        note: called with each row that is bad, odd or dropped: the keys of `data.bad_rows_file`, and `object`, the
            number of the object in the file.
        read: turns of the role and ready-made rows, and what stands where these were looked for in vain.
        rows: written.
        dropped: by kind; a row that is odd in several ways by the first of them that is dropped.
        dropped_places: the first few, with the kind and its details.
        odd: rows by what is odd about them, as in `kyon_pl.data.reading.quality`, the dropped ones too.
        bad: rows that are written and cannot be trained on, by kind; in mode `original` only.
        remarks: rows in which something was left out or changed, by kind.
        characters: rows by the name of their role.
        speakers: rows by the name under which the role speaks in them, where that is known.
        ways: rows by the way in which their memories were ranked.
        lengths: of context and target together, row by row.
    """

    unit: str
    note: Callable[[Mapping[str, object]], None] = lambda _: None
    read: int = 0
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_places: list[str] = field(default_factory=list)
    odd: Counter[Oddity] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    speakers: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    lengths: array[int] = field(default_factory=lambda: array("i"))

    def count_dropped(self, made: Made, reason: str) -> None:
        """Count what was read and is no row, or none that can be used."""
        self.read += 1
        self._count_dropped(made, reason)
        self._note(made, reason, odd=0, left_out=True)

    def count_row(
        self, made: Made, problem: str, odd: int, drop: Sequence[Oddity], length: int, remarks: Iterable[str]
    ) -> bool:
        """Count a row.

        Args:
            made: the row.
            problem: why it cannot be trained on, if it is to be written all the same.
            odd: what is odd about it, as `kyon_pl.data.reading.quality.bits`.
            drop: kinds of odd rows that are left out.
            length: of context and target.
            remarks: kinds of things that were left out or changed in it.

        Returns:
            Whether it is to be written.
        """
        self.read += 1
        self.odd.update(names(odd))
        reasons = names(odd & bits(drop))
        if problem or odd:
            self._note(made, problem, odd, left_out=bool(reasons))
        if reasons:
            self._count_dropped(made, ODDITIES[reasons[0]])
            return False
        self.rows += 1
        self.lengths.append(length)
        self.remarks.update(remarks)
        if problem:
            self.bad[problem.split(":")[0]] += 1
        if made.of_dialogue:
            self.speakers[_target(made).partition(":")[0]] += 1
        return True

    def _count_dropped(self, made: Made, reason: str) -> None:
        self.dropped[reason.split(":")[0]] += 1
        if len(self.dropped_places) < _SHOWN_PLACES:
            self.dropped_places.append(f"{made.place}: {reason}")

    def _note(self, made: Made, problem: str, odd: int, left_out: bool) -> None:
        self.note(
            {
                "file": str(made.file),
                "line": made.line,
                "object": made.number,
                "left_out": left_out,
                "problem": problem,
                "odd": names(odd),
                "target": "" if problem else _target(made)[:80],
            }
        )

    def facts(self) -> dict[str, str]:
        """What others may know of the rows: no file and no folder is named."""
        return {
            "rows": f"{self.rows:,}",
            "characters": _in_words(self.characters),
            "dropped": _in_words(self.dropped) or "0",
            **{words: f"{self.odd[kind]:,}" for kind, words in ODDITIES.items()},
        }

    def lines(self) -> Iterator[str]:
        """The report, for people to read."""
        yield f"read       {self.read:>11,}   turns of the roles, or rows"
        yield f"written    {self.rows:>11,}   rows"
        yield f"dropped    {self.dropped.total():>11,}"
        yield from _counted(self.dropped)
        yield from (f"    {place}" for place in self.dropped_places)
        if self.bad:
            yield f"bad        {self.bad.total():>11,}   rows, written as the original does; fit leaves them out"
            yield from _counted(self.bad)
        yield "odd, of the rows that can be trained on"
        yield from (f"  {self.odd[kind]:>9,} × {words}" for kind, words in ODDITIES.items())
        if self.speakers:
            shown = ", ".join(f"{name} × {count:,}" for name, count in self.speakers.most_common(_SHOWN_NAMES))
            more = len(self.speakers) - _SHOWN_NAMES
            yield f"taken for the roles: {shown}" + (f", and {more:,} more names" if more > 0 else "")
        yield "memories were ranked"
        yield from _counted(self.ways)
        if self.remarks:
            yield "in the contexts"
            yield from _counted(self.remarks)
        if self.rows:
            lengths = np.asarray(self.lengths)
            longest = f"{np.median(lengths):,.0f}, the longest {lengths.max():,}"
            yield f"{self.unit} a row, context and target: half have up to {longest}"
            yield from bar_lines(lengths)


def _counted(counts: Counter[str]) -> Iterator[str]:
    return (f"  {count:>9,} × {kind}" for kind, count in counts.most_common())


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} × {kind}" for kind, count in counts.most_common())


def _target(made: Made) -> str:
    return "" if isinstance(made.row, Dropped) else made.row["answer"]
