"""Where rows come from: the Hub or local files, through `datasets`, every row checked and none lost on the way."""

from __future__ import annotations

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
from kyon_pl.data.reading import checks
from kyon_pl.data.reading import files as file_readers
from kyon_pl.data.reading.checks import ColumnNames, check_columns, check_row
from kyon_pl.data.reading.files import files_of_each
from kyon_pl.errors import DataError, KyonError, MachineError, SettingError
from kyon_pl.hub.download import from_hub

ROW_FEATURES = Features(
    {
        "file": Value("int32"),  # index into Rows.files
        "row": Value("int64"),  # line or row in that file, from 1
        "context": Value("string"),
        "target": Value("string"),
        "messages": List({"role": Value("string"), "content": Value("string")}),  # before the target; of conversations
        "dialogue": Value("int64"),  # a number for it; 0: not known
        "input_ids": List(Value("int32")),  # of rows that come ready-made, empty otherwise
        "seq_len": Value("int32"),
        "problem": Value("string"),  # why the row cannot be used: the kind, then `: ` and details; empty if it can
    }
)
_HEAD = 100  # rows of a file in which a column must turn up at least once


@dataclass(frozen=True)
class SourceSettings:
    """Where rows are, and how their columns are called.

    Attributes:
        source: Hub data set id; or a file, a folder, a glob, or a list of any of these.
        name: configuration of a Hub data set; of each, where `source` names several.
        revision: branch, tag or commit of a Hub data set; of each, likewise.
        split: split of a Hub data set, or of a folder whose file names tell splits apart.
        columns: the names of the columns that are read.
    """

    source: str | list[str]
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    columns: ColumnNames = field(default_factory=ColumnNames)


@dataclass(frozen=True)
class Rows:
    """All rows of a source, good and bad, in their order.

    Attributes:
        dataset: with the columns of `ROW_FEATURES`.
        files: the files and Hub data sets that they come from.
        sources: for each of these, which source it belongs to: its place in the list of sources.
        fingerprint: changes when the source, its files or this package's way of reading them do.
    """

    dataset: Dataset
    files: tuple[str, ...]
    sources: tuple[int, ...]
    fingerprint: str

    @property
    def have_text(self) -> bool:
        """Whether there is any row to encode; rows of ids need no tokenizer."""
        return bool(pc.any(pc.not_equal(self.dataset.data.column("context"), "")).as_py())

    @property
    def source_numbers(self) -> NDArray[np.int64]:
        """(rows,) the source of each row."""
        return np.take(self.sources, np.asarray(self.dataset.data.column("file")))

    def count_without_end(self, eos_token_id: int) -> int:
        """How many rows that came as ids do not end with this one."""
        count = 0
        for chunk in self.dataset.data.column("input_ids").chunks:
            lengths = pc.list_value_length(chunk).to_numpy()
            last = chunk.flatten().to_numpy()[np.cumsum(lengths)[lengths > 0] - 1]
            count += int(np.count_nonzero(last != eos_token_id))
        return count

    def place(self, number: int) -> str:
        """File and line of a row, for a person to find it."""
        row = self.dataset[number]
        file = self.files[row["file"]]
        return f"{file}, {'line' if file.endswith(('.jsonl', '.ndjson', '.csv')) else 'row'} {row['row']}"


def load_rows(settings: SourceSettings, cache_dir: str | None = None, processes: int = 1) -> Rows:
    """Read a source into the cache, or take it from there if nothing changed.

    Args:
        settings: where the rows are.
        cache_dir: of `datasets`; its own default if None.
        processes: to read with, at most one a file.

    Raises:
        MissingFileError: there is no such file, folder or Hub data set, or the Hub cannot be reached.
        DataError: a column is nowhere to be found, or a file has no rows or cannot be read at all.
        SettingError: a split or configuration that the source does not have.
        MachineError: nothing can be written into `cache_dir`.
    """
    found = files_of_each(settings.source, settings.split)
    if cache_dir:
        _make_cache(Path(cache_dir))
    repos = [settings.source] if isinstance(settings.source, str) else settings.source
    if None not in found:  # all files at once, so that several processes can share them
        files = [(file, place) for place, own in enumerate(found) for file in own or ()]
        return _load_files(files, 0, settings, cache_dir, processes)
    parts: list[Rows] = []
    for place, (repo, own) in enumerate(zip(repos, found, strict=True)):
        first = sum(len(part.files) for part in parts)
        if own is None:
            parts.append(_load_hub(replace(settings, source=repo), cache_dir, first, place))
        else:
            parts.append(_load_files([(file, place) for file in own], first, settings, cache_dir, processes))
    return _joined(parts)


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return Rows(
        concatenate_datasets([part.dataset for part in parts]),
        tuple(chain.from_iterable(part.files for part in parts)),
        tuple(chain.from_iterable(part.sources for part in parts)),
        digest("joined", [part.fingerprint for part in parts]),
    )


def _make_cache(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "Name a folder that can be made and written to, or unset it."
        raise MachineError("data.cache_dir", f"{folder} cannot be used ({error.strerror})", fix) from None


def digest(*parts: object) -> str:
    """A fingerprint of values that print alike when they are alike."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def code_digest(*files: str | None) -> str:
    """A fingerprint of source files, so that what an older version cached is not taken for this one's."""
    return digest(*(Path(file).read_bytes() for file in files if file))


def _load_files(
    files: list[tuple[Path, int]], first: int, settings: SourceSettings, cache_dir: str | None, processes: int
) -> Rows:
    """Files, each with the place of its source; they are numbered from `first` on."""
    names = tuple(str(file) for file, _ in files)
    code = code_digest(__file__, checks.__file__, file_readers.__file__, split.__file__, prompt.__file__)
    stamps = [_size_and_time(file) for file, _ in files]
    fingerprint = digest("files", first, names, stamps, settings.columns, code)
    workers = min(processes, len(files))
    try:
        dataset = Dataset.from_generator(
            _generate,
            features=ROW_FEATURES,
            cache_dir=cache_dir,
            gen_kwargs={"files": list(enumerate(names, first)), "columns": settings.columns},
            num_proc=workers if workers > 1 else None,
            fingerprint=fingerprint,
        )
    except DatasetGenerationError as error:
        raise _cause(error, ", ".join(names)) from None
    return Rows(dataset, names, tuple(place for _, place in files), fingerprint)


def _size_and_time(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _cause(error: BaseException, where: str) -> KyonError:
    """The error of ours inside one that `datasets` wrapped around it."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, KyonError):
        return cause
    return DataError(where, f"cannot be read: {_first_line(cause or error)}", "Check that it is whole and may be read.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _generate(files: list[tuple[int, str]], columns: ColumnNames) -> Iterator[dict[str, Any]]:
    for index, name in files:
        rows = file_readers.read_rows(Path(name))
        head = list(islice(rows, _HEAD))
        if not head:
            raise DataError(name, "it has no rows", "Correct the file or leave it out.")
        check_columns(name, columns, {column for _, row in head if isinstance(row, dict) for column in row})
        for number, row in chain(head, rows):
            yield {"file": index, "row": number, **check_row(row, columns)}


def _load_hub(settings: SourceSettings, cache_dir: str | None, file: int, place: int) -> Rows:
    where = f"{settings.source} [{settings.split}]"
    dataset = _download(settings, cache_dir)
    if not len(dataset):
        raise DataError(where, "it has no rows", "Choose another split or configuration.")
    check_columns(where, settings.columns, set(dataset.column_names))
    # the library's own fingerprint of what it downloaded; it has no public name
    code = code_digest(__file__, checks.__file__, split.__file__, prompt.__file__)
    fingerprint = digest("hub", file, dataset._fingerprint, settings.columns, code)
    checked = dataset.map(
        _check_batch,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=ROW_FEATURES,
        fn_kwargs={"names": settings.columns, "file": file},
        new_fingerprint=fingerprint,
        desc="checking rows",
    )
    return Rows(checked, (where,), (place,), fingerprint)


def _check_batch(
    batch: dict[str, list[Any]], indices: list[int], names: ColumnNames, file: int
) -> dict[str, list[Any]]:
    rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
    checked = [{"file": file, "row": i + 1, **check_row(row, names)} for i, row in zip(indices, rows, strict=True)]
    return {name: [row[name] for row in checked] for name in ROW_FEATURES}


def _download(settings: SourceSettings, cache_dir: str | None) -> Dataset:
    repo = str(settings.source)

    def download() -> Dataset:
        return load_dataset(repo, settings.name, revision=settings.revision, split=settings.split, cache_dir=cache_dir)

    try:
        return from_hub(download, repo, "dataset", settings.revision)
    except KyonError:
        raise
    except ValueError as error:
        raise SettingError(f"data set {repo}", _first_line(error), "Correct data.name or data.split.") from None
    except (DatasetBuildError, RuntimeError) as error:  # RuntimeError: a data set that is a script
        fix = "Download its files and name them as data.source: they are then read row by row."
        raise DataError(f"data set {repo}", _first_line(error.__cause__ or error), fix) from None
