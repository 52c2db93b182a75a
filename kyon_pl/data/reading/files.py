"""The files that a source names, and a reader for each file format."""

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

from kyon_pl.demo import ASSETS
from kyon_pl.errors import DataError, MissingFileError, SettingError

NumberedRows = Iterator[tuple[int, Any]]
"""Pairs of a row's number, from 1, and the row: a dict, or `Unreadable`. In JSONL and CSV the number is the line."""

_SPACE = re.compile(r"\s*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w-]+")
_NO_SPLITS = {"train": ["**"]}  # the patterns of `datasets` for a folder whose file names contain no split
_INVALID_NUMBER_OR_DEPTH = (ValueError, RecursionError)  # a number of 5,000 digits, 100,000 brackets


@dataclass(frozen=True)
class Unreadable:
    """Replaces a row that could not be read.

    Attributes:
        problem: the kind of problem, then `: ` and details.
    """

    problem: str


def read_rows(path: Path) -> NumberedRows:
    """Yield the rows of a file, unchecked.

    Args:
        path: a file with a suffix in `READERS`.

    Raises:
        MissingFileError: the file does not exist.
        DataError: the file as a whole cannot be read.
    """
    must_exist(path)
    return READERS[path.suffix.lower()](path)


def must_exist(path: Path) -> None:
    """Check that a path is a regular file; reading a pipe would block forever.

    Raises:
        MissingFileError: the path does not exist.
        DataError: the path is a folder, a pipe or a device.
    """
    if path.exists() and not path.is_file():
        raise DataError(str(path), "it is not a regular file", "Write the rows to a file and name that file.")
    if not path.is_file():
        fix = "Check the path; it is relative to the current folder."
        raise MissingFileError(str(path), "there is no such file", fix)


def local_files(source: str | list[str], split: str = "train") -> list[Path] | None:
    """Return all files of a source or a list of sources, in order; None if one of them is a Hub id.

    Raises:
        KyonError: see `files_of_each`.
    """
    named = files_of_each(source, split)
    return None if None in named else [file for files in named if files for file in files]


def files_of_each(source: str | list[str], split: str = "train") -> list[list[Path] | None]:
    """Return the files of each source, in order; None for a Hub id. `demo` names the embedded rows.

    Raises:
        MissingFileError: a path or glob matches nothing.
        DataError: a file has a suffix without a reader.
        SettingError: a source is empty, or its file names contain splits and `split` is not one of them.
    """
    sources = [source] if isinstance(source, str) else source
    if not sources or "" in sources:
        raise SettingError("data.source", "it is empty", "Name a file, a folder, a glob or a Hub data set.")
    return [_files_of(one, split) for one in sources]


def json_lines(path: Path) -> NumberedRows:
    """Yield the values of a file of JSON lines, of any type; `Unreadable` for a line without one."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                for value in _json_values(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line):
                    yield number, value


def _json_values(line: bytes) -> Iterator[Any]:
    """Yield the JSON values of a line: usually one; several if a writer forgot newlines."""
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
        except _INVALID_NUMBER_OR_DEPTH as error:
            yield Unreadable(f"broken JSON: {error}")
            return
        yield value
        start = _SPACE.match(text, end).end()  # type: ignore[union-attr]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; raise a ValueError if it has two values of one name."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"two values of {_first_duplicate([name for name, _ in pairs])!r}")
    return row


def _first_duplicate(names: list[str]) -> str | None:
    return next((name for index, name in enumerate(names) if name in names[:index]), None)


def _json(path: Path) -> NumberedRows:
    """Read an array of rows, or JSON lines with the suffix `.json`."""
    with path.open("rb") as file:
        if not file.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from json_lines(path)
            return
    fix = "Correct the file, or write one row per line (.jsonl)."
    try:
        yield from enumerate(json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object), start=1)
    except UnicodeDecodeError as error:
        raise DataError(str(path), f"not UTF-8: {error.reason} at byte {error.start + 1}", fix) from None
    except json.JSONDecodeError as error:
        found = f"broken JSON: {error.msg} at character {error.colno}"
        raise DataError(f"{path}, line {error.lineno}", found, fix) from None
    except _INVALID_NUMBER_OR_DEPTH as error:
        raise DataError(str(path), f"broken JSON: {error}", fix) from None


def _csv(path: Path) -> NumberedRows:
    """Read all cells as text, so that a reply of `42` or `NA` is not converted."""
    start = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(filter(None, rows), [])
            if name := _first_duplicate([name for name in header if name.strip()]):
                where = f"{path}, line {rows.line_num}"
                raise DataError(where, f"two columns are called {name!r}", "Rename one of them.")
            start = rows.line_num
            for cells in rows:
                if cells:
                    fits = len(cells) <= len(header)
                    yield start + 1, dict(zip_longest(header, cells)) if fits else Unreadable("more cells than columns")
                start = rows.line_num
    except UnicodeDecodeError as error:
        raise DataError(str(path), f"not UTF-8: {error.reason}", "Save it as UTF-8 (`CSV UTF-8` in Excel).") from None
    except csv.Error as error:
        fix = "Correct the quotes there: a cell with a line break, a comma or a quote must be quoted."
        raise DataError(f"{path}, after line {start}", f"broken CSV: {error}", fix) from None


def _parquet(path: Path) -> NumberedRows:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, pre_buffer=False) as file:  # pre_buffer would keep the whole file in memory
            if name := _first_duplicate(file.schema_arrow.names):
                raise DataError(str(path), f"two columns are called {name!r}", "Rename one of them.")
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=1000))
            yield from enumerate((row for rows in batches for row in rows), start=1)
    except (ArrowInvalid, OSError, UnicodeDecodeError, OverflowError) as error:  # OverflowError: dates out of range
        found = f"not a readable Parquet file: {str(error).strip().partition(chr(10))[0]}"
        raise DataError(str(path), found, "Download or write the file again.") from None


READERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""The reader of each file suffix."""


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
            found = f"files with the suffix {file.suffix or '(none)'} cannot be read"
            raise DataError(str(file), found, f"Give files that end in {', '.join(READERS)}.")
    return files


def _is_local(source: str) -> bool:
    """Return whether a text that could be a Hub id is a path, or ends like one."""
    exists = os.path.exists(source)  # noqa: PTH110 (Path.exists raises if a name is too long)
    return exists or Path(source).suffix.lower() in READERS


def _expand(source: str, split: str) -> list[Path]:
    path = Path(os.path.expanduser(source))  # noqa: PTH111 (Path.expanduser raises for `~nobody`)
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises if a name is too long)
        return _folder_files(path, split)
    if os.path.exists(path):  # noqa: PTH110 (as above)
        return [path]
    if os.path.islink(path):  # noqa: PTH114 (as above)
        raise MissingFileError(source, "it is a broken link, or a link to itself", "Name the file itself.")
    if not glob.has_magic(source):
        fix = "Check the path, which is relative to the current folder, or give a Hub id (owner/name)."
        raise MissingFileError(source, "there is no such file or folder", fix)
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (Path.glob is relative)
    if not (files := [file for file in found if file.is_file()]):
        raise MissingFileError(source, "no file matches this pattern", "Check the pattern; ** goes into subfolders.")
    return files


def _folder_files(folder: Path, split: str) -> list[Path]:
    """Return the files of a split if file names contain splits, by the conventions of `datasets`; else all files."""
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns, sanitize_patterns  # 0.5 s

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
    if patterns == _NO_SPLITS:
        return found["train"]
    if split not in found:
        splits_found = f"{folder} has files of split {', '.join(found)}, and none of {split!r}"
        raise SettingError("data.split", splits_found, f"Set the split, or name the files: {folder}/*.jsonl.")
    return found[split]
