"""Which files a source names."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns, sanitize_patterns

from kyon_pl.data.readers import READERS
from kyon_pl.demo import ASSETS
from kyon_pl.errors import DataError, MissingFileError, SettingError

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
