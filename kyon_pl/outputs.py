"""The files and folders that options name to write: never an input, and never a file that is not from this package.

An existing file counts as ours by its content: a JSONL file by the keys of its first row, a PNG by its `Software`
entry, a text by its first lines. An empty file has nothing to lose. Ours are replaced as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from kyon_pl.disk import replace, temporary
from kyon_pl.errors import KyonError, MachineError, SettingError
from kyon_pl.locks import Lock

Test = Callable[[Path], bool]
PNG_METADATA = {"Software": "kyon_pl"}
"""For matplotlib's `savefig`; `is_our_png` looks for it."""

_LONGEST_ROW, _PNG_HEAD = 1 << 24, 4096  # bytes
_OTHER_NAME = "Name another one"


@dataclass(frozen=True)
class Output:
    """A file that an option names to write.

    Attributes:
        option: the option, for messages.
        path: absolute, without links.
        is_ours: whether an existing file is from this package, so that it may be replaced.
    """

    option: str
    path: Path
    is_ours: Test

    def cannot_be_written(self, error: OSError) -> MachineError:
        """The error for a file that the system does not let us write."""
        found = f"{self.path} cannot be written ({error.strerror or error})"
        return MachineError(self.option, found, "Free space and check the permissions there, or name another file")


def resolve(option: str, name: str | Path) -> Path:
    """The path that an output option names: absolute, with `~` replaced and links followed; it need not exist.

    Args:
        option: for the message.
        name: as the user wrote it.

    Raises:
        SettingError: no path of this machine: empty, with a NUL, of an unknown user, too long, or below a file.
    """
    text = str(name)
    if not text or "\0" in text:
        raise SettingError(option, f"{text!r} is no path", _OTHER_NAME)
    try:
        path = Path(os.path.realpath(Path(text).expanduser()))
        path.lstat()
    except FileNotFoundError:
        pass
    except (RuntimeError, OSError) as error:  # RuntimeError: there is no such user
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise SettingError(option, f"{_shortened(text)} cannot be used ({reason})", _OTHER_NAME) from None
    return path


def output_file(option: str, name: str | Path, is_ours: Test) -> Output:
    """An output; see `Output` and `resolve`.

    Raises:
        SettingError: as `resolve`.
    """
    return Output(option, resolve(option, name), is_ours)


def check_outputs(outputs: Sequence[Output], inputs: Mapping[str, str | Iterable[str] | None]) -> None:
    """Check that nothing would be lost. Call this before anything is written.

    Args:
        outputs: all files that the command writes.
        inputs: what it reads, by option: files, folders or globs; other names, such as Hub ids, match nothing.

    Raises:
        SettingError: an output is an input, in a folder that is read, another output, or a file that is not ours.
    """
    for number, output in enumerate(outputs):
        for option, names in inputs.items():
            if any(_reads(name, output.path) for name in ([names] if isinstance(names, str) else names or ())):
                raise SettingError(output.option, f"{output.path} is read as {option}", _OTHER_NAME)
        for other in outputs[:number]:
            if _same(output.path, other.path):
                raise SettingError(output.option, f"{output.path} is also written as {other.option}", _OTHER_NAME)
        check_replaceable(output)


def check_replaceable(output: Output) -> None:
    """Check that an output does not exist, or is a file of ours.

    Raises:
        SettingError: it is another file, a folder or a device.
    """
    path = output.path
    if not path.exists():
        return
    if not path.is_file():
        found = f"{path} is a folder" if path.is_dir() else f"{path} is no regular file"
        raise SettingError(output.option, found, "Name a file")
    try:
        ours = path.stat().st_size == 0 or output.is_ours(path)
    except OSError as error:
        raise output.cannot_be_written(error) from None
    if not ours:
        found = f"{path} exists and is from elsewhere; it is not overwritten"
        raise SettingError(output.option, found, f"{_OTHER_NAME}, or remove it")


@contextmanager
def writing(output: Output) -> Iterator[Path]:
    """Yield the path of a temporary file beside an output, which replaces the output if the block succeeds.

    Only one process at a time writes an output. The folder of the output is created if needed.

    Args:
        output: a checked output; it is checked again for what has come into its place since.

    Raises:
        SettingError: as `check_replaceable`.
        MachineError: the file cannot be written, or another process is writing it.
    """
    written = temporary(output.path)
    try:
        output.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(output.path, output.option):
            try:
                yield written
                check_replaceable(output)
                replace(written, output.path)
            finally:
                written.unlink(missing_ok=True)
    except KyonError:  # some are OSErrors
        raise
    except OSError as error:
        if error.filename and Path(os.fsdecode(error.filename)).parent not in (output.path.parent, output.path):
            raise  # of a file that the block reads
        raise output.cannot_be_written(error) from error


def locked(path: Path, option: str) -> Lock:
    """The lock of an output, in a hidden file beside it.

    Args:
        path: of the output, a file or a folder; its folder exists.
        option: that names it.

    Raises:
        MachineError: another process is writing the output.
        OSError: the lock file cannot be written.
    """
    return Lock(path.with_name(f".{path.name}.lock"), path, f"Wait until it is done, or name another {option}")


def rows_with(keys: Sequence[str]) -> Test:
    """A test for a JSONL file of ours: its first row has exactly these keys, in this order."""

    def test(path: Path) -> bool:
        with path.open("rb") as file:
            line = file.readline(_LONGEST_ROW)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return False
        return isinstance(row, dict) and list(row) == list(keys)

    return test


def text_that_starts(text: str) -> Test:
    """A test for a text of ours, by its beginning."""

    def test(path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(len(text.encode())) == text.encode()

    return test


def is_our_png(path: Path) -> bool:
    """Whether a picture was written with `PNG_METADATA`."""
    with path.open("rb") as file:
        return b"tEXtSoftware\0kyon_pl" in file.read(_PNG_HEAD)


def _reads(name: str, path: Path) -> bool:
    """Whether a named file, folder or glob includes a path."""
    try:
        real = Path(os.path.realpath(Path(name).expanduser()))
        if not real.exists():
            return fnmatchcase(path.name, real.name) and fnmatchcase(str(path.parent), str(real.parent))
    except (RuntimeError, ValueError, OSError):  # no path, as the reader will say
        return False
    return _same(path, real) or (real.is_dir() and path.is_relative_to(real))


def _same(path: Path, other: Path) -> bool:
    """Whether two paths are one file; also by hard links, and on file systems that ignore case."""
    return path == other or (path.exists() and other.exists() and path.samefile(other))


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}…"
