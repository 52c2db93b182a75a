"""The files that a source names, and a reader for each file format."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable
from pathlib import Path

from kyon_pl.data.reading.columnar import column_names, columnar_rows
from kyon_pl.data.reading.columns import import_command
from kyon_pl.data.reading.excel import excel_rows, sheet_names
from kyon_pl.data.reading.folders import folder_files
from kyon_pl.data.reading.json_files import json_rows
from kyon_pl.data.reading.tabular import DELIMITERS, csv_delimiter, csv_rows
from kyon_pl.data.reading.text_files import NumberedRows, file_format, text_encoding
from kyon_pl.demo import ASSETS
from kyon_pl.disk import expand_home
from kyon_pl.errors import DataError, KyonError, MissingFileError, SettingError
from kyon_pl.hub.modelscope import is_modelscope

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w-]+")
_COLUMNAR = (".parquet", ".arrow")
_IMPORTED = (".txt", ".png")  # of novels and cards, which hold no rows
_BINARY = (*_COLUMNAR, ".xlsx")  # formats that are compressed already

READERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".xlsx": excel_rows,
    ".parquet": lambda path: columnar_rows(path, None),
    ".arrow": lambda path: columnar_rows(path, None),
}
"""The reader of each file suffix. Text files can be compressed, with `.gz` or `.zst` behind the suffix."""

DATA_FILES = tuple(f"*{suffix}{packed}" for suffix in READERS for packed in ("", ".gz", ".zst"))
"""Patterns of the names of data files; some match no file that `has_reader` admits."""


def has_reader(path: Path) -> bool:
    """Return whether the suffix of a file is one that is read."""
    return file_format(path) in READERS and (path.suffix.lower() in READERS or file_format(path) not in _BINARY)


def read_rows(path: Path, is_needed: Callable[[str], bool] | None = None) -> NumberedRows:
    """Return the rows of a file, unchecked.

    Args:
        path: a file for which there is a reader.
        is_needed: whether to read a column, by its name, of Parquet and Arrow files; None: all are read.

    Raises:
        MissingFileError: the file does not exist.
        DataError: the file as a whole cannot be read.
    """
    must_exist(path)
    if file_format(path) in _COLUMNAR:
        return columnar_rows(path, is_needed)
    return _complete(path, READERS[file_format(path)](path))


def _complete(path: Path, rows: NumberedRows) -> NumberedRows:
    try:
        yield from rows
    except KyonError:
        raise
    except OSError as error:  # pyarrow's for broken gzip and zstd, too
        found = f"cannot be read: {str(error).strip().partition(chr(10))[0]}"
        raise DataError(str(path), found, "Check that it is complete, or download it again.") from None


def all_columns(path: Path) -> list[str]:
    """Return the columns in the schema of a Parquet or Arrow file; empty for files without a schema."""
    return column_names(path) if file_format(path) in _COLUMNAR else []


def guesses(path: Path) -> list[str]:
    """Return what was recognized about a file and could be wrong or incomplete: delimiter, encoding, sheets."""
    if file_format(path) == ".xlsx":
        first, *others = sheet_names(path)
        return [f"sheet {first!r} is read, and not {', '.join(map(repr, others))}"] if others else []
    if file_format(path) in _COLUMNAR:
        return []
    encoding = text_encoding(path).removesuffix("-sig")
    found = [] if encoding == "utf-8" else [f"in {encoding.upper()}"]
    if file_format(path) in (".csv", ".tsv") and (delimiter := csv_delimiter(path)) != ",":
        found.append(f"separated by {DELIMITERS.get(delimiter, repr(delimiter))}")
    return found


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


def local_files(source: str | list[str], split: str = "train", name: str | None = None) -> list[Path] | None:
    """Return all files of a source or a list of sources, in order; None if one of them is to be downloaded.

    Raises:
        KyonError: see `files_of_each`.
    """
    named = files_of_each(source, split, name)
    return None if None in named else [file for files in named if files for file in files]


def files_of_each(source: str | list[str], split: str = "train", name: str | None = None) -> list[list[Path] | None]:
    """Return the files of each source, in order; None for an id of the Hub or ModelScope. `demo`: the embedded rows.

    Args:
        source: file, folder, glob or id, or a list of these.
        split: split of a folder that has splits, see `folder_files`.
        name: configuration of a folder whose README has several.

    Raises:
        MissingFileError: a path or glob matches nothing.
        DataError: a file has a suffix without a reader.
        SettingError: a source is empty, or a folder has splits or configurations, and not this one.
    """
    sources = [source] if isinstance(source, str) else source
    if not sources or "" in sources:
        raise SettingError("data.source", "it is empty", "Name a file, a folder, a glob or a Hub data set.")
    return [_files_of(one, split, name) for one in sources]


def _files_of(source: str, split: str, name: str | None) -> list[Path] | None:
    if source == "demo":
        if split not in ("train", "validation", "test"):
            raise SettingError("data.split", f"demo has no rows of split {split!r}", "Set train, validation or test.")
        return [ASSETS / ("train.jsonl" if split == "train" else "validation.jsonl")]
    if is_modelscope(source) or (_HUB_ID.fullmatch(source) and not _is_local(source)):
        return None
    files = _expand(source, split, name)
    for file in files:
        if not has_reader(file):
            found = f"files with the suffix {file.suffix or '(none)'} cannot be read"
            fix = f"Give files that end in {', '.join(READERS)}; or .gz, .zst of text files."
            if file_format(file) in _IMPORTED:
                fix += f" {import_command(file)}"
            raise DataError(str(file), found, fix)
    return files


def _is_local(source: str) -> bool:
    """Return whether a text that could be a Hub id is a path, or ends like one."""
    exists = os.path.exists(source)  # noqa: PTH110 (Path.exists raises if a name is too long)
    return exists or has_reader(Path(source))


def _expand(source: str, split: str, name: str | None) -> list[Path]:
    path = expand_home(source)
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises if a name is too long)
        return folder_files(path, split, name, has_reader)
    if os.path.exists(path):  # noqa: PTH110 (as above)
        return [path]
    if os.path.islink(path):  # noqa: PTH114 (as above)
        raise MissingFileError(source, "it is a broken link, or a link to itself", "Name the file itself.")
    if not glob.has_magic(source):
        fix = "Check the path, which is relative to the current folder, or give a Hub id (owner/name)."
        raise MissingFileError(source, "there is no such file or folder", fix)
    found = sorted(Path(name) for name in glob.glob(_pattern(path), recursive=True))  # noqa: PTH207 (Path.glob is relative)
    if not (files := [file for file in found if file.is_file()]):
        raise MissingFileError(source, "no file matches this pattern", "Check the pattern; ** goes into subfolders.")
    return files


def _pattern(path: Path) -> str:
    """Return a path as a glob in which the names of folders that exist are no patterns."""
    folder = next((parent for parent in path.parents if os.path.isdir(parent)), Path())  # noqa: PTH112 (as above)
    return str(Path(glob.escape(str(folder))) / path.relative_to(folder)) if folder != Path() else str(path)
