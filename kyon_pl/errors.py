"""Errors that a user can cause and fix.

The command line prints them as one paragraph, without a traceback, and exits with status 2. Each class also derives
from the built-in exception that callers of the Python API expect.
"""

from __future__ import annotations

from collections.abc import Iterable


class KyonError(Exception):
    """Base class; an error has three parts.

    Attributes:
        where: the file, line, key or setting.
        found: what is wrong with it.
        fix: what to do, as a sentence.
    """

    def __init__(self, where: str, found: str, fix: str) -> None:
        super().__init__(where, found, fix)
        self.where = where
        self.found = found
        self.fix = fix

    def __reduce__(self) -> tuple[type[KyonError], tuple[str, str, str]]:
        # exceptions are pickled between processes (datasets.map, loader workers) with their constructor's arguments
        return type(self), (self.where, self.found, self.fix)

    def __str__(self) -> str:
        end = "" if self.fix.endswith((".", "?", "!")) else "."
        return f"{self.where}: {self.found.rstrip('.')}. {self.fix}{end}"


class SettingError(KyonError, ValueError):
    """A setting that does not exist, is out of range, or contradicts another."""


def no_such_choice(setting: str, value: object, choices: Iterable[str]) -> SettingError:
    """The error for a value that is none of a setting's choices.

    Args:
        setting: its name.
        value: what was given.
        choices: all values that it takes.
    """
    return SettingError(setting, f"there is no {value!r}", f"Choose one of: {', '.join(choices)}.")


class DataError(KyonError, ValueError):
    """Data rows or files that cannot be used."""


class MissingFileError(KyonError, FileNotFoundError):
    """A file, folder or repository that does not exist."""


class CheckpointError(KyonError, RuntimeError):
    """Weights, an adapter or a checkpoint that cannot be read or do not fit."""


class MachineError(KyonError, RuntimeError):
    """A limit of this machine: no GPU, too little memory, a full disk."""


class TrainingError(KyonError, RuntimeError):
    """Training that has failed: a loss that is not finite, or an adapter that does not learn."""
