"""Durable writes."""

from __future__ import annotations

import os
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
