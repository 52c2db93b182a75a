"""What is odd about a row that could be trained on all the same: counted always, left out if a setting says so."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kyon_pl.errors import SettingError

Oddity = Literal["duplicate", "loop", "punctuation", "leak"]
"""`duplicate`: context and target of an earlier row. `loop`: a target that repeats itself. `punctuation`: a target of
signs, without a letter or digit. `leak`: what the target says stands word for word in its context."""

ODDITIES: dict[Oddity, str] = {
    "duplicate": "exact duplicates of an earlier row",
    "loop": "targets that repeat the same few tokens",
    "punctuation": "targets of punctuation only",
    "leak": "targets that stand in their context",
}
_LOOP_TOKENS = 32  # a stretch this long in which at most
_PERIOD_TOKENS = 8  # so many tokens come again and again
_LEAK_CHARACTERS = 4  # 好的 and its like stand everywhere
_NAME_CHARACTERS = 40
_QUOTES = "「」『』“”‘’\"' \t\r\n"


def check_drop(drop: Sequence[Oddity], setting: str = "data.drop") -> None:
    """Refuse a kind that there is not.

    Args:
        drop: kinds of odd rows.
        setting: that names them, for the error.

    Raises:
        SettingError: there is one.
    """
    for kind in drop:
        if kind not in get_args(Oddity):
            choice = ", ".join(get_args(Oddity))
            raise SettingError(setting, f"there is no {kind!r}", f"Choose among: {choice}.")


def bits(kinds: Iterable[Oddity]) -> int:
    """Kinds as one number."""
    return sum(1 << list(ODDITIES).index(kind) for kind in {*kinds})


def names(number: int) -> list[Oddity]:
    """The kinds in a number."""
    return [kind for place, kind in enumerate(ODDITIES) if number >> place & 1]


def oddities(context: str, target: str | None, target_ids: Sequence[int]) -> int:
    """What is odd about one row by itself, as `bits`: all but `duplicate`.

    Args:
        context: empty if the row came as ids.
        target: likewise, or where there is none.
        target_ids: its ids.
    """
    found: list[Oddity] = ["loop"] if has_loop(target_ids) else []
    if target:
        text = said(target)
        if not any(unicodedata.category(character)[0] in "LN" for character in text):
            found.append("punctuation")
        elif len(text) >= _LEAK_CHARACTERS and text in context:
            found.append("leak")
    return bits(found)


def said(target: str) -> str:
    """A target without the name in front and without quotes around it."""
    for colon in ":：":
        name, found, rest = target.partition(colon)
        if found and len(name) <= _NAME_CHARACTERS and "\n" not in name and rest.strip(_QUOTES):
            target = rest
            break
    return target.strip(_QUOTES)


def has_loop(ids: Sequence[int]) -> bool:
    """Whether 32 tokens in a row consist of 8 or fewer that come again and again."""
    if len(ids) - len({*ids}) < _LOOP_TOKENS - _PERIOD_TOKENS:  # too few come twice
        return False
    array = np.asarray(ids)
    return any(_longest_run(array[period:] == array[:-period]) >= _LOOP_TOKENS - period for period in _periods())


def _periods() -> range:
    return range(1, _PERIOD_TOKENS + 1)


def _longest_run(same: NDArray[np.bool_]) -> int:
    """Of True values."""
    breaks = np.flatnonzero(~np.concatenate([[False], same, [False]]))
    return int(np.diff(breaks).max()) - 1


def row_hash(context: str, target: str | None, ids: Sequence[int]) -> int:
    """The same for rows that are the same, as a signed 64-bit number; of ids where a row came so."""
    content = f"{context}\0{target}" if context else repr(list(ids))
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def repeated(hashes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(rows,) which ones have an earlier one of the same hash."""
    found = np.ones(len(hashes), dtype=np.bool_)
    found[np.unique(hashes, return_index=True)[1]] = False
    return found


class Seen:
    """Numbers that have come before, in 8 bytes each: a set of a million takes 90 MB.

    Args:
        unsorted: how many are kept in a set before they are sorted in.
    """

    def __init__(self, unsorted: int = 50_000) -> None:
        self._unsorted = unsorted
        self._sorted = np.empty(0, dtype=np.int64)
        self._new: set[int] = set()

    def before(self, number: int) -> bool:
        """Whether this signed 64-bit number has come before; from now on it has."""
        place = np.searchsorted(self._sorted, number)
        known = number in self._new or number in self._sorted[place : place + 1]
        self._new.add(number)
        if len(self._new) == self._unsorted:
            self._sorted = np.union1d(self._sorted, np.fromiter(self._new, dtype=np.int64))
            self._new.clear()
        return known
