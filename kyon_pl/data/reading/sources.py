"""Loading rows from the Hub or local files into the cache of `datasets`; bad rows are kept, with their problem."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetBuildError, DatasetGenerationError
from numpy.typing import NDArray

from kyon_pl.data import prompt, split
from kyon_pl.data.cache import cache_error, cache_root, cached, downloaded
from kyon_pl.data.reading import checks, columnar, excel, forms, json_files, tabular, text_files, texts, turns
from kyon_pl.data.reading import columns as column_names
from kyon_pl.data.reading import files as file_readers
from kyon_pl.data.reading.checks import check_row, unread_columns
from kyon_pl.data.reading.columns import ColumnNames, check_columns
from kyon_pl.data.reading.files import DATA_FILES, files_of_each
from kyon_pl.errors import DataError, KyonError, SettingError
from kyon_pl.hub.download import from_hub
from kyon_pl.hub.modelscope import fetch_from_modelscope, is_modelscope

ROW_FEATURES = Features(
    {
        "file": Value("int32"),  # index into Rows.files
        "row": Value("int64"),  # line or row in that file, from 1
        "context": Value("string"),
        "target": Value("string"),
        "messages": List({"role": Value("string"), "content": Value("string")}),  # of a conversation, before the target
        "dialogue": Value("int64"),  # hash; 0: unknown
        "input_ids": List(Value("int32")),  # of a row that is already encoded; else empty
        "seq_len": Value("int32"),
        "form": Value("string"),  # see `form_of`; empty if it is no row
        "unread": List(Value("string")),  # columns that are not read, at the first row that has them
        "problem": Value("string"),  # why the row cannot be used, as kind, `: ` and details; empty if it can
    }
)
_FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_CHECKS = (checks, column_names, forms, turns, texts, split, prompt)
_READERS = (file_readers, json_files, tabular, excel, columnar, text_files)
_HEAD_ROWS = 100  # rows of a file in which each column must occur at least once


@dataclass(frozen=True)
class SourceSettings:
    """The location of rows and the names of their columns.

    Attributes:
        source: Hub data set id, `modelscope:OWNER/NAME`, file, folder or glob, or a list of these.
        name: configuration of the Hub data sets, and of folders whose README has several.
        revision: branch, tag or commit of the Hub data sets.
        split: split of the Hub data sets, and of folders that have splits.
        columns: names of the columns that are read.
    """

    source: str | list[str]
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    columns: ColumnNames = field(default_factory=ColumnNames)


@dataclass(frozen=True)
class Rows:
    """All rows of a source, good and bad, in order.

    Attributes:
        dataset: data set with the columns of `ROW_FEATURES`.
        files: the files and Hub data sets of the rows.
        sources: for each of `files`, the index of its source in the list of sources.
        fingerprint: cache key; changes with the source, its files and the code that reads them.
    """

    dataset: Dataset
    files: tuple[str, ...]
    sources: tuple[int, ...]
    fingerprint: str

    @property
    def have_text(self) -> bool:
        """Whether any row has text to encode; rows of ids need no tokenizer."""
        return bool(pc.any(pc.not_equal(self.dataset.data.column("context"), "")).as_py())

    @property
    def source_numbers(self) -> NDArray[np.int64]:
        """(rows,) index of each row's source."""
        return np.take(self.sources, np.asarray(self.dataset.data.column("file")))

    def count_without_eos(self, eos_token_id: int) -> int:
        """Count the rows of ids that do not end with the end-of-sequence id."""
        count = 0
        for chunk in self.dataset.data.column("input_ids").chunks:
            lengths = pc.list_value_length(chunk).to_numpy()
            last = chunk.flatten().to_numpy()[np.cumsum(lengths)[lengths > 0] - 1]
            count += int(np.count_nonzero(last != eos_token_id))
        return count

    def place(self, number: int) -> str:
        """Return file and line of a row, for messages."""
        row = self.dataset[number]
        file = self.files[row["file"]]
        by_line = text_files.file_format(Path(file)) in (".jsonl", ".ndjson", ".csv", ".tsv")
        return f"{file}, line {row['row']}" if by_line else f"{file}, row {row['row']}"


def load_rows(settings: SourceSettings, cache_dir: str | None = None, processes: int = 1) -> Rows:
    """Read a source into the cache, or take it from the cache if nothing changed.

    Args:
        settings: location and columns of the rows.
        cache_dir: cache folder of `datasets`; None: its default.
        processes: number of reading processes, at most one per file.

    Raises:
        MissingFileError: a file, folder or data set does not exist, or the Hub or ModelScope cannot be reached.
        DataError: a column is missing, or a file has no rows or cannot be read at all.
        SettingError: the source does not have this split or configuration.
        MachineError: the cache cannot be read or written.
    """
    sources = [settings.source] if isinstance(settings.source, str) else settings.source
    sources = [_fetched(source, settings.revision) if is_modelscope(source) else source for source in sources]
    files_of_source = files_of_each(sources, settings.split, settings.name)
    if None not in files_of_source:  # in one call, so that several processes can share the files
        numbered = [(file, number) for number, files in enumerate(files_of_source) for file in files or ()]
        return _load_files(numbered, 0, settings, cache_dir, processes)
    parts: list[Rows] = []
    for number, (source, files) in enumerate(zip(sources, files_of_source, strict=True)):
        first = sum(len(part.files) for part in parts)
        if files is None:
            parts.append(_load_hub(replace(settings, source=source), cache_dir, first, number))
        else:
            parts.append(_load_files([(file, number) for file in files], first, settings, cache_dir, processes))
    return _concatenate(parts)


def _fetched(source: str, revision: str | None) -> str:
    """Return the folder of a data set of ModelScope, which is read like any other folder."""
    return str(fetch_from_modelscope(source, "dataset", revision, patterns=["README.md", *DATA_FILES]))


def digest(*parts: object) -> str:
    """Return a fingerprint of values, which must have the same `repr` if they are equal."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def code_digest(*files: str | None) -> str:
    """Return a fingerprint of source files, so that rows cached by another version of the code are not used."""
    return digest(*(Path(file).read_bytes() for file in files if file))


def _concatenate(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return Rows(
        concatenate_datasets([part.dataset for part in parts]),
        tuple(chain.from_iterable(part.files for part in parts)),
        tuple(chain.from_iterable(part.sources for part in parts)),
        digest("joined", [part.fingerprint for part in parts]),
    )


def _load_files(
    files: list[tuple[Path, int]], first: int, settings: SourceSettings, cache_dir: str | None, processes: int
) -> Rows:
    """Load pairs of a file and the index of its source; the files are numbered from `first`."""
    names = tuple(str(file) for file, _ in files)
    code = code_digest(__file__, *(module.__file__ for module in (*_CHECKS, *_READERS)))
    stamps = [_size_and_time(file) for file, _ in files]
    fingerprint = digest("files", first, names, stamps, settings.columns, code)
    workers, root = min(processes, len(files)), cache_root(cache_dir)
    folder = root / "generator"  # `datasets` names it after its builder

    def read(workers: int = workers) -> Dataset:
        try:
            return Dataset.from_generator(
                _generate_rows,
                features=ROW_FEATURES,
                cache_dir=str(root),
                gen_kwargs={"files": list(enumerate(names, first)), "columns": settings.columns},
                num_proc=workers if workers > 1 else None,
                fingerprint=fingerprint,
            )
        except DatasetGenerationError as error:
            if workers > 1:  # the error of another process comes without its cause: read again for it
                return read(1)
            raise _unwrapped(error, ", ".join(names), folder) from None

    dataset = cached(folder, fingerprint, read)
    return Rows(dataset, names, tuple(number for _, number in files), fingerprint)


def _size_and_time(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _unwrapped(error: BaseException, where: str, folder: Path) -> KyonError:
    """Return the KyonError that `datasets` wrapped, or one with the wrapped error's message."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, KyonError):
        return cause
    if isinstance(cause, OSError):  # of writing the cache, or of reading a source
        written = folder in Path(str(cause.filename)).parents
        if written or cause.errno in _FULL_OR_READ_ONLY:
            return cache_error(folder, cause)
    fix = "Check that it is complete and readable."
    return DataError(where, f"cannot be read: {_first_line(cause or error)}", fix)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _generate_rows(files: list[tuple[int, str]], columns: ColumnNames) -> Iterator[dict[str, Any]]:
    for index, name in files:
        rows = file_readers.read_rows(Path(name), columns.is_read)
        head = list(islice(rows, _HEAD_ROWS))
        if not head:
            raise DataError(name, "it has no rows", "Correct the file or leave it out.")
        schema = file_readers.all_columns(Path(name))
        check_columns(name, columns, {column for _, row in head if isinstance(row, dict) for column in row} | {*schema})
        known, not_needed = set[str](), {column for column in schema if not columns.is_read(column)}
        for number, row in chain(head, rows):
            checked = check_row(row, columns)
            unread = (unread_columns(row, checked["form"], columns) | not_needed) - known
            known |= unread
            yield {"file": index, "row": number, "unread": sorted(unread), **checked}


def _load_hub(settings: SourceSettings, cache_dir: str | None, file: int, source_number: int) -> Rows:
    where = f"{settings.source} [{settings.split}]"
    dataset = _download(settings, cache_root(cache_dir))
    if not len(dataset):
        raise DataError(where, "it has no rows", "Choose another split or configuration.")
    check_columns(where, settings.columns, set(dataset.column_names))
    code = code_digest(__file__, *(module.__file__ for module in _CHECKS))
    # `datasets` has no public name for the fingerprint of a download
    fingerprint = digest("hub", file, dataset._fingerprint, settings.columns, code)
    folder = Path(dataset.cache_files[0]["filename"]).parent
    unread = [name for name in dataset.column_names if not settings.columns.is_read(name)]
    chosen = dataset.remove_columns(unread)

    def check() -> Dataset:
        return chosen.map(
            _check_batch,
            batched=True,
            with_indices=True,
            remove_columns=chosen.column_names,
            features=ROW_FEATURES,
            fn_kwargs={"names": settings.columns, "file": file, "unread": unread},
            cache_file_name=str(folder / f"cache-{fingerprint}.arrow"),
            new_fingerprint=fingerprint,
            desc="checking rows",
        )

    return Rows(cached(folder, fingerprint, check), (where,), (source_number,), fingerprint)


def _check_batch(
    batch: dict[str, list[Any]], indices: list[int], names: ColumnNames, file: int, unread: list[str]
) -> dict[str, list[Any]]:
    """Check a batch of rows; the columns that are not read are named in the first row of each batch."""
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    checked = [
        {"file": file, "row": i + 1, "unread": [], **check_row(row, names)}
        for i, row in zip(indices, rows, strict=True)
    ]
    found = (unread_columns(row, one["form"], names) for row, one in zip(rows, checked, strict=True))
    checked[0]["unread"] = sorted(set(unread).union(*found))
    return {name: [row[name] for row in checked] for name in ROW_FEATURES}


def _download(settings: SourceSettings, root: Path) -> Dataset:
    repo, name, revision, split_name = str(settings.source), settings.name, settings.revision, settings.split

    def download() -> Dataset:
        return load_dataset(repo, name, revision=revision, split=split_name, cache_dir=str(root))

    try:
        fingerprint = digest("download", repo, name, revision, split_name)
        return downloaded(root, fingerprint, lambda: from_hub(download, repo, "dataset", revision))
    except KyonError:
        raise
    except ValueError as error:
        raise SettingError(f"data set {repo}", _first_line(error), "Correct data.name or data.split.") from None
    except (DatasetBuildError, RuntimeError) as error:  # RuntimeError: the data set is a script
        fix = "Download its files and name them as data.source, to read them row by row."
        raise DataError(f"data set {repo}", _first_line(error.__cause__ or error), fix) from None
