"""Durable writes, and errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file's content, or the entries of a folder, are written to the disk (fsync).

    Raises:
        OSError: the path does not exist, or writing fails.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def name_in_errors(file: Path) -> Iterator[None]:
    """Set the file of an OSError: one that is raised while an open file is written names none.

    Args:
        file: the file that is written.
    """
    try:
        yield
    except OSError as error:
        error.filename = str(file)
        raise
