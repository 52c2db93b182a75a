"""Paths with `~`, durable and atomic writes, the modes of written files, and errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def expand_home(name: str | Path) -> Path:
    """A path with `~` or `~user` at its start replaced; unchanged if there is no such user.

    Args:
        name: as the user wrote it. Path.expanduser raises a RuntimeError for an unknown user.
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111 (as above)


@contextmanager
def default_mode(file: Path) -> Iterator[Path]:
    """Give a file that is written in the block the mode of a new file under the user's umask.

    safetensors writes a file that only its owner can read, whatever the umask.

    Args:
        file: in an existing folder; after the block it must exist.
    """
    file.unlink(missing_ok=True)
    file.touch()
    mode = file.stat().st_mode
    yield file
    file.chmod(mode)


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


def temporary(path: Path) -> Path:
    """The path at which a file or folder is written before it is complete."""
    return path.with_name(f".{path.name}.writing")


def replace(written: Path, path: Path) -> None:
    """Rename a complete file to its final name, so that the file survives a loss of power.

    Args:
        written: the complete file, in the folder of `path`.
        path: its final name; an existing file is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    sync(written)
    written.replace(path)
    sync(path.parent)


def write_atomically(file: Path, text: str) -> None:
    """Write a text file completely or not at all, even if the process is killed or power fails.

    Raises:
        OSError: the file cannot be written.
    """
    written = temporary(file)
    with name_in_errors(file):
        written.write_text(text, encoding="utf-8")
        replace(written, file)


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
