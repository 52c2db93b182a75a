"""What the doctor says, line by line."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Literal

from kyon_pl.errors import KyonError

State = Literal["ok", "warning", "missing"]
MARKS: dict[State, str] = {"ok": "ok", "warning": "!", "missing": "✗"}
GIB = 2**30
COLUMNS = 110


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        name: of what was looked at.
        state: `ok`; `warning`: it works, but look at it; `missing`: the run cannot work.
        found: what there is.
        fix: what to do, where there is something to do.
    """

    name: str
    state: State
    found: str
    fix: str = ""

    def lines(self, width: int) -> list[str]:
        """The line, and what to do below it.

        Args:
            width: of the column of names.
        """
        first = f"  {MARKS[self.state]:<2} {self.name:<{width}}  "
        rest = " " * len(first)
        lines = _wrapped(self.found, first, rest)
        return lines + _wrapped(self.fix, f"{rest}→ ", f"{rest}  ") if self.fix else lines


def finding_of(name: str, error: KyonError) -> Finding:
    """An error that a run would end with, found before."""
    return Finding(name, "missing", f"{error.where}: {error.found}", error.fix)


def gib(size_bytes: float) -> str:
    """Bytes in GiB, or in MiB where that says more."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:,.1f} GiB"
    return f"{size_bytes / 2**20:,.{0 if size_bytes >= 10 * 2**20 else 1}f} MiB"


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, COLUMNS, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
