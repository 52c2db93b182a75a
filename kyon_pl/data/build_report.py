"""What `kyon-pl build-data` read, dropped and wrote."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from kyon_pl.data.dialogues import Dropped, Made
from kyon_pl.data.histogram import bar_lines

_SHOWN_PLACES = 5
_SHOWN_NAMES = 5


@dataclass
class BuildReport:
    """Counts what happens. What was read is what is kept and what is dropped.

    Attributes:
        unit: in which lengths are given, `characters` or `tokens`.
        read: turns of the role and ready-made rows, and what stands where these were looked for in vain.
        rows: written.
        dropped: by kind.
        dropped_places: the first few, with the kind and its details.
        duplicates: rows that have question and target of an earlier one; they are written all the same.
        remarks: rows in which something was left out or changed, by kind.
        speakers: rows by the name under which the role speaks in them, where that is known.
        ways: rows by the way in which their memories were ranked.
        lengths: of context and target together, row by row.
    """

    unit: str
    read: int = 0
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_places: list[str] = field(default_factory=list)
    duplicates: int = 0
    remarks: Counter[str] = field(default_factory=Counter)
    speakers: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    lengths: array[int] = field(default_factory=lambda: array("q"))
    _seen: set[bytes] = field(default_factory=set, repr=False)

    def count_read(self, made: Made) -> None:
        """Count what was read, and drop it if it is no row."""
        self.read += 1
        if isinstance(made.row, Dropped):
            self.dropped[made.row.reason.split(":")[0]] += 1
            if len(self.dropped_places) < _SHOWN_PLACES:
                self.dropped_places.append(f"{made.place}: {made.row.reason}")

    def count_row(self, question: str, target: str, length: int) -> None:
        """Count a row that is written."""
        self.rows += 1
        self.lengths.append(length)
        key = hashlib.blake2b(f"{question}\0{target}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self.duplicates += key in self._seen
        self._seen.add(key)

    def lines(self) -> Iterator[str]:
        """The report, for people to read."""
        yield f"read       {self.read:>11,}   turns of the roles, or rows"
        yield f"written    {self.rows:>11,}   rows"
        yield f"dropped    {self.dropped.total():>11,}"
        yield from (f"  {count:>9,} × {kind}" for kind, count in self.dropped.most_common())
        yield from (f"    {place}" for place in self.dropped_places)
        yield f"duplicates {self.duplicates:>11,}   rows with question and target of an earlier one (written)"
        if self.speakers:
            names = ", ".join(f"{name} × {count:,}" for name, count in self.speakers.most_common(_SHOWN_NAMES))
            more = len(self.speakers) - _SHOWN_NAMES
            yield f"taken for the roles: {names}" + (f", and {more:,} more names" if more > 0 else "")
        yield "memories were ranked"
        yield from (f"  {count:>9,} × {way}" for way, count in self.ways.most_common())
        if self.remarks:
            yield "in the contexts"
            yield from (f"  {count:>9,} × {remark}" for remark, count in self.remarks.most_common())
        if self.rows:
            lengths = np.asarray(self.lengths)
            longest = f"{np.median(lengths):,.0f}, the longest {lengths.max():,}"
            yield f"{self.unit} a row, context and target: half have up to {longest}"
            yield from bar_lines(lengths)
