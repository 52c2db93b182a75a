"""The errors that a person at the keyboard can cause: where, what was found, what to do.

The command line prints such an error as one paragraph, without a traceback, and exits with status 2. Each kind also
derives from the built-in exception that a caller of the Python API would expect.
"""

from __future__ import annotations


class KyonError(Exception):
    """What went wrong, in the three parts that a reader needs.

    Attributes:
        where: the file, line, key or setting in question.
        found: what stands there.
        fix: what to do about it.
    """

    def __init__(self, where: str, found: str, fix: str) -> None:
        super().__init__(where, found, fix)
        self.where = where
        self.found = found
        self.fix = fix

    def __reduce__(self) -> tuple[type[KyonError], tuple[str, str, str]]:
        # exceptions cross process borders (datasets.map, loader workers) by their constructor's arguments
        return type(self), (self.where, self.found, self.fix)

    def __str__(self) -> str:
        end = "" if self.fix.endswith((".", "?", "!")) else "."
        return f"{self.where}: {self.found.rstrip('.')}. {self.fix}{end}"


class SettingError(KyonError, ValueError):
    """A setting that does not exist, does not fit, or contradicts another."""


class DataError(KyonError, ValueError):
    """Rows or files of data that cannot be used as they are."""


class MissingFileError(KyonError, FileNotFoundError):
    """A file, folder or repository that is not there."""


class CheckpointError(KyonError, RuntimeError):
    """Weights, an adapter or a checkpoint that do not fit what is asked of them."""


class MachineError(KyonError, RuntimeError):
    """Something that this machine cannot do: no GPU, too little memory, a full disk."""


class TrainingError(KyonError, RuntimeError):
    """Training that cannot come to any good: numbers that are not finite, an adapter that learns nothing."""
