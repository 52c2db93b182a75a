"""Oddities of valid rows, such as duplicates: always counted, dropped if `data.drop` says so."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kyon_pl.errors import SettingError

Oddity = Literal["duplicate", "loop", "punctuation", "leak"]
"""`duplicate`: context and target equal an earlier row's. `loop`: the target repeats itself. `punctuation`: the target
has no letter or digit. `leak`: the context contains the target's text verbatim."""

ODDITIES: dict[Oddity, str] = {
    "duplicate": "exact duplicates of an earlier row",
    "loop": "targets that repeat the same few tokens",
    "punctuation": "targets of punctuation only",
    "leak": "targets that are copied from their context",
}
_LOOP_TOKENS = 32  # length of a loop
_PERIOD_TOKENS = 8  # longest period of a loop
_LEAK_CHARACTERS = 4  # shorter replies such as 好的 occur in many contexts
_NAME_CHARACTERS = 40
_QUOTES = "「」『』“”‘’\"' \t\r\n"


def check_drop(drop: Sequence[Oddity], setting: str = "data.drop") -> None:
    """Check kinds of odd rows.

    Args:
        drop: the kinds.
        setting: the setting that lists them, for the error.

    Raises:
        SettingError: a kind does not exist.
    """
    for kind in drop:
        if kind not in get_args(Oddity):
            choice = ", ".join(get_args(Oddity))
            raise SettingError(setting, f"there is no {kind!r}", f"Choose among: {choice}.")


def bits(kinds: Iterable[Oddity]) -> int:
    """Encode kinds as a bit field, in the order of `ODDITIES`."""
    return sum(1 << list(ODDITIES).index(kind) for kind in {*kinds})


def names(number: int) -> list[Oddity]:
    """Decode the bit field of `bits`."""
    return [kind for bit, kind in enumerate(ODDITIES) if number >> bit & 1]


def oddities(context: str, target: str | None, target_ids: Sequence[int]) -> int:
    """Find the oddities of one row, all kinds but `duplicate`, as `bits`.

    Args:
        context: the context; empty if the row has ids only.
        target: the target; None or empty if the row has ids only or no target.
        target_ids: token ids of the target.
    """
    found: list[Oddity] = ["loop"] if has_loop(target_ids) else []
    if target:
        text = strip_speaker(target)
        if not any(unicodedata.category(character)[0] in "LN" for character in text):
            found.append("punctuation")
        elif len(text) >= _LEAK_CHARACTERS and text in context:
            found.append("leak")
    return bits(found)


def strip_speaker(target: str) -> str:
    """Remove the speaker's name and the quotes around a target."""
    for colon in ":：":
        name, separator, rest = target.partition(colon)
        if separator and len(name) <= _NAME_CHARACTERS and "\n" not in name and rest.strip(_QUOTES):
            target = rest
            break
    return target.strip(_QUOTES)


def has_loop(ids: Sequence[int]) -> bool:
    """Return whether 32 consecutive tokens repeat with a period of 8 tokens or fewer."""
    if len(ids) - len({*ids}) < _LOOP_TOKENS - _PERIOD_TOKENS:  # too few repeated tokens
        return False
    array = np.asarray(ids)
    periods = range(1, _PERIOD_TOKENS + 1)
    return any(_longest_run(array[period:] == array[:-period]) >= _LOOP_TOKENS - period for period in periods)


def _longest_run(values: NDArray[np.bool_]) -> int:
    """Return the length of the longest run of True."""
    breaks = np.flatnonzero(~np.concatenate([[False], values, [False]]))
    return int(np.diff(breaks).max()) - 1


def row_hash(context: str, target: str | None, ids: Sequence[int]) -> int:
    """Hash a row's text, or its ids if it has no text, to a signed 64-bit number."""
    content = f"{context}\0{target}" if context else repr(list(ids))
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def repeated(hashes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return (rows,) whether an earlier row has the same hash."""
    later = np.ones(len(hashes), dtype=np.bool_)
    later[np.unique(hashes, return_index=True)[1]] = False
    return later


class Seen:
    """A set of integers in 8 bytes each; a Python set of a million takes 90 MB.

    Args:
        unsorted: how many new integers are kept in a Python set before they are merged into the sorted array.
    """

    def __init__(self, unsorted: int = 50_000) -> None:
        self._unsorted = unsorted
        self._sorted = np.empty(0, dtype=np.int64)
        self._new: set[int] = set()

    def before(self, number: int) -> bool:
        """Add a signed 64-bit integer; return whether it was there before."""
        index = np.searchsorted(self._sorted, number)
        known = number in self._new or number in self._sorted[index : index + 1]
        self._new.add(number)
        if len(self._new) == self._unsorted:
            self._sorted = np.union1d(self._sorted, np.fromiter(self._new, dtype=np.int64))
            self._new.clear()
        return known
