"""Which files a source means, and the reader of each kind of file."""

from __future__ import annotations

import csv
import glob
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pyarrow import ArrowInvalid
from pyarrow.parquet import ParquetFile

from kyon_pl.demo import ASSETS
from kyon_pl.errors import DataError, MissingFileError, SettingError


@dataclass(frozen=True)
class Unreadable:
    """Stands in the place of a row that could not be read.

    Attributes:
        problem: the kind of problem, then `: ` and its details.
    """

    problem: str


_SPACE = re.compile(r"\s*")

NumberedRows = Iterator[tuple[int, Any]]
"""The number of a row, counted from 1, with the row: a dict if all is well. Formats made of lines count lines."""


def read_rows(path: Path) -> NumberedRows:
    """The rows of a file, one after the other, whatever they hold.

    Args:
        path: a file whose suffix is one of `READERS`.

    Raises:
        MissingFileError: there is no such file.
        DataError: the file as a whole cannot be read.
    """
    must_exist(path)
    return READERS[path.suffix.lower()](path)


def must_exist(path: Path) -> None:
    """Complain of a file that is not there, or of what is none: a pipe would be waited for, for ever.

    Raises:
        MissingFileError: there is nothing of this name.
        DataError: a folder, a pipe or a device has it.
    """
    if path.exists() and not path.is_file():
        raise DataError(str(path), "it is no regular file", "Write the rows into a file, and name that.")
    if not path.is_file():
        fix = "Check the path; it is relative to the current folder."
        raise MissingFileError(str(path), "there is no such file", fix)


def json_lines(path: Path) -> NumberedRows:
    """The values in a file of JSON lines, whatever they are; `Unreadable` where a line holds none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                for value in _json_values(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line):
                    yield number, value


def _json_values(line: bytes) -> Iterator[Any]:
    """The JSON values of a line: one, or several in a row, as a writer without newlines leaves them."""
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        yield Unreadable(f"not UTF-8: {error.reason} at byte {error.start + 1}")
        return
    decoder, start = json.JSONDecoder(object_pairs_hook=_object), 0
    while start < len(text):
        try:
            value, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            yield Unreadable(f"broken JSON: {error.msg} at character {error.pos + 1}")
            return
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
            yield Unreadable(f"broken JSON: {error}")
            return
        yield value
        start = _SPACE.match(text, end).end()  # type: ignore[union-attr]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of two values under one name, nothing tells which was meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"two values of {_repeated([name for name, _ in pairs])!r}")
    return found


def _repeated(names: list[str]) -> str | None:
    """The first name that stands there twice; None if there is none."""
    return next((name for place, name in enumerate(names) if name in names[:place]), None)


def _json(path: Path) -> NumberedRows:
    """An array of rows, or JSON lines under another name."""
    with path.open("rb") as file:
        if not file.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from json_lines(path)
            return
    fix = "Correct the file, or write one row a line (.jsonl)."
    try:
        yield from enumerate(json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object), start=1)
    except UnicodeDecodeError as error:
        raise DataError(str(path), f"not UTF-8: {error.reason} at byte {error.start + 1}", fix) from None
    except json.JSONDecodeError as error:
        found = f"broken JSON: {error.msg} at character {error.colno}"
        raise DataError(f"{path}, line {error.lineno}", found, fix) from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
        raise DataError(str(path), f"broken JSON: {error}", fix) from None


def _csv(path: Path) -> NumberedRows:
    """All cells as text: a reply of `42` or `NA` stays what it is."""
    start = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(filter(None, rows), [])
            if name := _repeated([name for name in header if name.strip()]):
                raise DataError(
                    f"{path}, line {rows.line_num}", f"two columns are called {name!r}", "Rename one of them."
                )
            start = rows.line_num
            for cells in rows:
                if cells:
                    fits = len(cells) <= len(header)
                    yield start + 1, dict(zip_longest(header, cells)) if fits else Unreadable("more cells than columns")
                start = rows.line_num
    except UnicodeDecodeError as error:
        raise DataError(str(path), f"not UTF-8: {error.reason}", "Save it as UTF-8 (`CSV UTF-8` in Excel).") from None
    except csv.Error as error:
        fix = "Correct the quotes there: a cell with a line break, a comma or a quote stands in quotes."
        raise DataError(f"{path}, after line {start}", f"broken CSV: {error}", fix) from None


def _parquet(path: Path) -> NumberedRows:
    try:
        with ParquetFile(path, pre_buffer=False) as file:  # else all of the file is in memory at its end
            if name := _repeated(file.schema_arrow.names):
                raise DataError(str(path), f"two columns are called {name!r}", "Rename one of them.")
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=1000))
            yield from enumerate((row for rows in batches for row in rows), start=1)
    except (ArrowInvalid, OSError, UnicodeDecodeError, OverflowError) as error:  # the last: dates that Python has not
        found = f"no readable Parquet file: {str(error).strip().partition(chr(10))[0]}"
        raise DataError(str(path), found, "Download or write the file again.") from None


READERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


_ALL_FILES = {"train": ["**"]}  # what `datasets` finds where no name tells splits apart
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w-]+")


def local_files(source: str | list[str], split: str = "train") -> list[Path] | None:
    """All files that a source or a list of sources names, in order; None if one of them is a Hub id.

    Raises:
        KyonError: as `files_of_each`.
    """
    named = files_of_each(source, split)
    return None if None in named else [file for files in named if files for file in files]


def files_of_each(source: str | list[str], split: str = "train") -> list[list[Path] | None]:
    """For each source the files that it names, in order; None in place of a Hub id. `demo` names the embedded rows.

    Raises:
        MissingFileError: a path or glob that names nothing.
        DataError: files of kinds that are not read here.
        SettingError: a source that is empty; or one whose files tell splits apart, and `split` is not one of them.
    """
    sources = [source] if isinstance(source, str) else source
    if not sources or "" in sources:
        raise SettingError("data.source", "it is empty", "Name a file, a folder, a glob or a Hub data set.")
    return [_files_of(one, split) for one in sources]


def _files_of(source: str, split: str) -> list[Path] | None:
    if source == "demo":
        if split not in ("train", "validation", "test"):
            raise SettingError("data.split", f"demo has no rows of split {split!r}", "Set train, validation or test.")
        return [ASSETS / ("train.jsonl" if split == "train" else "validation.jsonl")]
    if _HUB_ID.fullmatch(source) and not _is_local(source):
        return None
    files = _expand(source, split)
    for file in files:
        if file.suffix.lower() not in READERS:
            fix = f"Give files that end in {', '.join(READERS)}."
            raise DataError(str(file), f"files of kind {file.suffix or '(no suffix)'} are not read here", fix)
    return files


def _is_local(source: str) -> bool:
    """Whether a text that could be a Hub id is a path, or was meant to be one."""
    exists = os.path.exists(source)  # noqa: PTH110 (Path's raises where a name is too long)
    return exists or Path(source).suffix.lower() in READERS


def _expand(source: str, split: str) -> list[Path]:
    path = Path(os.path.expanduser(source))  # noqa: PTH111 (Path's raises at `~nobody`)
    if os.path.isdir(path):  # noqa: PTH112 (Path's raises where a name is too long)
        return _folder_files(path, split)
    if os.path.exists(path):  # noqa: PTH110 (as above)
        return [path]
    if os.path.islink(path):  # noqa: PTH114 (as above)
        raise MissingFileError(source, "it is a link that leads nowhere, or to itself", "Name the file itself.")
    if not glob.has_magic(source):
        fix = "Check the path, which is relative to the current folder, or give a Hub id (owner/name)."
        raise MissingFileError(source, "there is no such file or folder", fix)
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (Path's takes no / in front)
    if not (files := [file for file in found if file.is_file()]):
        raise MissingFileError(source, "no file matches this pattern", "Check the pattern; ** goes into subfolders.")
    return files


def _folder_files(folder: Path, split: str) -> list[Path]:
    """All data files, unless names such as train and test tell them apart, by the conventions of `datasets`."""
    # half a second, which chat and build-data do not need
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns, sanitize_patterns

    base = str(folder.resolve())
    try:
        patterns = sanitize_patterns(get_data_patterns(base))
    except EmptyDatasetError:
        patterns = {}
    splits = DataFilesDict.from_patterns(patterns, base_path=base, allowed_extensions=[*READERS])
    found = {str(name): [Path(str(file)) for file in files] for name, files in splits.items() if files}
    if not found:
        fix = f"Put files there that end in {', '.join(READERS)}."
        raise MissingFileError(str(folder), "no data file in this folder", fix)
    if patterns == _ALL_FILES:
        return found["train"]
    if split not in found:
        found_splits = f"{folder} has files of split {', '.join(found)}, and none of {split!r}"
        raise SettingError("data.split", found_splits, f"Set the split, or name the files: {folder}/*.jsonl.")
    return found[split]
