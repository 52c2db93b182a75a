"""Reading Parquet and Arrow files, only the columns that are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kyon_pl.data.reading.json_files import first_duplicate
from kyon_pl.data.reading.text_files import NumberedRows
from kyon_pl.errors import DataError

_BATCH_ROWS = 1000


def columnar_rows(path: Path, is_needed: Callable[[str], bool] | None) -> NumberedRows:
    """Yield the rows of a Parquet or Arrow file.

    Args:
        path: the file.
        is_needed: whether to read a column, by its name; None: all are read.

    Raises:
        DataError: two columns have one name, or the file cannot be read.
    """
    with _opened(path) as (names, batches):
        wanted = [name for name in names if is_needed is None or is_needed(name)]
        yield from enumerate((row for batch in batches(wanted) for row in batch.to_pylist()), start=1)


def column_names(path: Path) -> list[str]:
    """Return the names of all columns of a Parquet or Arrow file.

    Raises:
        DataError: two columns have one name, or the file cannot be read.
    """
    with _opened(path) as (names, _):
        return [*names]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file and yield its column names and a function that reads batches of some columns."""
    from pyarrow import ArrowException

    kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
    try:
        with (_parquet if kind == "Parquet" else _arrow)(path) as (names, batches):
            if name := first_duplicate(names):
                raise DataError(str(path), f"two columns are called {name!r}", "Rename one of them.")
            yield names, batches
    # OverflowError: dates out of range; LookupError: an unknown time zone
    except (ArrowException, OSError, UnicodeDecodeError, OverflowError, LookupError) as error:
        found = f"not a readable {kind} file: {str(error).strip().partition(chr(10))[0]}"
        raise DataError(str(path), found, "Download or write the file again.") from None


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path, pre_buffer=False) as file:  # pre_buffer would keep the whole file in memory
        yield (
            list(file.schema_arrow.names),
            lambda columns: file.iter_batches(batch_size=_BATCH_ROWS, columns=columns),
        )


@contextmanager
def _arrow(path: Path) -> Iterator[Any]:
    """Open an Arrow stream, as `datasets` writes it, or an Arrow file."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
            batches = iter(reader)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        pieces = (batch.slice(start, _BATCH_ROWS) for batch in batches for start in range(0, len(batch), _BATCH_ROWS))
        yield list(reader.schema.names), lambda columns: (piece.select(columns) for piece in pieces)
