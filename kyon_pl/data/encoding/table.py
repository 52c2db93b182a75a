"""The encoded rows of a source: encoded once, then read from the cache."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray
from pyarrow import ListArray

from kyon_pl.data import prompt, split
from kyon_pl.data.cache import cached
from kyon_pl.data.encoding import encode
from kyon_pl.data.encoding.encode import EncodeSettings, Tokenizer, encode_columns
from kyon_pl.data.encoding.tree import SharedTree, contiguous_ids, find_shared, read_tree, write_tree
from kyon_pl.data.reading import quality
from kyon_pl.data.reading.sources import Rows, code_digest, digest
from kyon_pl.errors import DataError, SettingError

BadRows = Literal["drop", "error"]

ENCODED_FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        "seq_len": Value("int32"),
        "masked": List(Value("int32")),
        "cut_tokens": Value("int32"),
        "problem": Value("string"),
        "question": Value("int64"),
        "other_questions": List(Value("int64")),  # of trained replies before the last
        "dialogue": Value("int64"),  # hash; 0: unknown
        "odd": Value("int32"),  # kyon_pl.data.reading.quality.bits, without duplicates
        "row_hash": Value("int64"),
    }
)
_SHOWN_BAD_ROWS = 5
_ROWS_PER_PROCESS = 2000  # fewer rows are encoded faster than a process starts


class CacheableTokenizer(Tokenizer, Protocol):
    """A tokenizer with a fingerprint for the cache key."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that determines the ids of a text."""


@dataclass(frozen=True)
class EncodedTable:
    """The rows of a source with their ids. Bad rows are included, with their problem.

    Attributes:
        rows: the checked rows.
        encoded: data set of as many rows in the same order, with the columns of `ENCODED_FEATURES`.
        settings: how the rows were encoded.
        drop: kinds of odd rows that are not used.
    """

    rows: Rows
    encoded: Dataset
    settings: EncodeSettings
    drop: tuple[quality.Oddity, ...] = ()

    def __len__(self) -> int:
        return len(self.encoded)

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """(rows,) tokens of each row; 0 for bad rows."""
        return _numpy(pc.list_value_length(self.encoded.data.column("input_ids")))

    @cached_property
    def seq_len(self) -> NDArray[np.int64]:
        """(rows,) tokens of each row's context."""
        return _numpy(self.encoded.data.column("seq_len"))

    @cached_property
    def masked_tokens(self) -> NDArray[np.int64]:
        """(rows,) tokens of each row after `seq_len` without a label; 0 unless several replies are trained."""
        row, bounds = self._lists("masked")
        signs = np.where(np.arange(len(bounds)) % 2, 1, -1)  # ends minus starts
        return np.bincount(row, weights=bounds * signs, minlength=len(self)).astype(np.int64)

    @cached_property
    def cut_tokens(self) -> NDArray[np.int64]:
        """(rows,) tokens that were removed from each row's context."""
        return _numpy(self.encoded.data.column("cut_tokens"))

    @cached_property
    def questions(self) -> NDArray[np.int64]:
        """(rows,) hash of each row's question."""
        return _numpy(self.encoded.data.column("question"))

    @cached_property
    def dialogues(self) -> NDArray[np.int64]:
        """(rows,) hash of each row's dialogue; 0: unknown."""
        return _numpy(self.encoded.data.column("dialogue"))

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """(rows,) group of each row, see `group_rows`."""
        return split.group_rows(self.questions, self.dialogues, self._lists("other_questions"))

    @cached_property
    def tree(self) -> SharedTree:
        """What the contexts of the rows have in common; found once and kept beside the encoded rows."""
        files = self.encoded.cache_files
        file = Path(files[0]["filename"]).with_suffix(".tree.npz") if files else None
        saved = read_tree(file, len(self)) if file else None
        if saved is not None:
            return saved
        with contiguous_ids(self.encoded.data.column("input_ids").chunks, file.parent if file else None) as ids:
            starts = np.cumsum(self.tokens) - self.tokens
            tree = find_shared(ids, starts, np.minimum(self.seq_len, self.tokens))
        if file:
            write_tree(tree, file)
        return tree

    @cached_property
    def crc32(self) -> int:
        """CRC-32 of what training sees of the rows, independent of files: ids, labels, questions, dialogues."""
        crc = 0
        for name in ("input_ids", "seq_len", "masked", "question", "other_questions", "dialogue"):
            for chunk in self.encoded.data.column(name).chunks:
                values = chunk.flatten() if isinstance(chunk, ListArray) else chunk
                crc = zlib.crc32(values.to_numpy(zero_copy_only=False).tobytes(), crc)
        return zlib.crc32(np.concatenate([self.tokens, self.masked_tokens]).tobytes(), crc)

    @cached_property
    def good(self) -> NDArray[np.int64]:
        """(good rows,) numbers of the rows that can be used."""
        return np.flatnonzero(self.tokens)

    @property
    def row_hashes(self) -> NDArray[np.int64]:
        """(rows,) hash of each row's text or ids; rows that are equal have the same."""
        return _numpy(self.encoded.data.column("row_hash"))

    @cached_property
    def odd(self) -> NDArray[np.int64]:
        """(rows,) oddities of each row, as `kyon_pl.data.reading.quality.bits`; 0 for bad rows."""
        odd: NDArray[np.int64] = np.where(self.tokens > 0, _numpy(self.encoded.data.column("odd")), 0)
        odd[self.good[quality.repeated(self.row_hashes[self.good])]] |= quality.bits(["duplicate"])
        return odd

    @cached_property
    def kept(self) -> NDArray[np.int64]:
        """(kept rows,) numbers of the good rows without an oddity in `drop`."""
        dropped = self.odd[self.good] & quality.bits(self.drop) > 0
        return np.asarray(self.good[~dropped])

    @cached_property
    def problems(self) -> dict[int, str]:
        """The problem of each bad row, by row number."""
        bad = np.flatnonzero(self.tokens == 0)
        problems = self.encoded.select(bad)["problem"]
        return dict(zip(bad.tolist(), problems, strict=True))

    def _lists(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return a column of lists, flattened: (values,) the row of each value, and (values,) the values."""
        column = self.encoded.data.column(name)
        row = np.repeat(np.arange(len(self)), _numpy(pc.list_value_length(column)))
        return row, _numpy(pc.list_flatten(column))

    def first_row_outside_vocabulary(self, vocabulary_size: int) -> int | None:
        """Return the number of the first row with an id of `vocabulary_size` or more; None if there is none."""
        if (pc.max(pc.list_flatten(self.encoded.data.column("input_ids"))).as_py() or 0) < vocabulary_size:
            return None
        return next(i for i, ids in enumerate(self.encoded["input_ids"]) if max(ids, default=0) >= vocabulary_size)

    def odd_counts(self) -> dict[quality.Oddity, int]:
        """Count the rows of each oddity that occurs; a row can have several."""
        counts = {kind: int(np.count_nonzero(self.odd & quality.bits([kind]))) for kind in quality.ODDITIES}
        return {kind: count for kind, count in counts.items() if count}

    def count_problems(self, numbers: list[int] | None = None) -> str:
        """Count bad rows by kind of problem, as text; of the given rows, or of all."""
        chosen = self.problems.values() if numbers is None else [self.problems[number] for number in numbers]
        counts = Counter(problem.split(":")[0] for problem in chosen)
        return ", ".join(f"{count:,} × {kind}" for kind, count in counts.most_common())

    def bad_and_odd_rows(self) -> Iterator[dict[str, str | int | bool | list[quality.Oddity]]]:
        """Yield file, line, problem and oddities of each bad or odd row, in order."""
        for number in np.flatnonzero((self.tokens == 0) | (self.odd > 0)).tolist():
            odd = int(self.odd[number])
            row = self.rows.dataset[number]
            yield {
                "file": self.rows.files[row["file"]],
                "line": row["row"],
                "left_out": bool(number in self.problems or odd & quality.bits(self.drop)),
                "problem": self.problems.get(number, ""),
                "odd": quality.names(odd),
                "target": (row["target"] or "")[:80],
            }

    def examples(self) -> list[str]:
        """Return location and problem of the first few bad rows."""
        return [f"{self.rows.place(number)}: {self.problems[number]}" for number in [*self.problems][:_SHOWN_BAD_ROWS]]

    def check(self, bad_rows: BadRows) -> None:
        """Raise an error if bad rows are not allowed.

        Args:
            bad_rows: `error` allows none, `drop` all; rows that are too long also depend on `over_length`.

        Raises:
            DataError: a bad row is not allowed, or a file has no good row.
        """
        files = np.array(self.rows.dataset.data.column("file"))
        for index in sorted({*range(len(self.rows.files))} - {*files[self.good].tolist()}):
            bad = np.flatnonzero(files == index).tolist()
            found = f"none of its {len(bad):,} rows can be used ({self.count_problems(bad)})"
            fix = f"Correct the file or leave it out. {self.rows.place(bad[0])}: {self.problems[bad[0]]}."
            raise DataError(self.rows.files[index], found, fix)
        if self.problems and bad_rows == "error":
            fix = "Correct them, or set data.bad_rows to drop."
            raise DataError("; ".join(self.examples()), f"bad rows: {self.count_problems()}", fix)
        too_long = [number for number, problem in self.problems.items() if problem.startswith("too long")]
        if too_long and self.settings.over_length == "error":
            fix = "Raise data.max_tokens, or set data.over_length to shrink_context or drop."
            found = f"{self.problems[too_long[0]]}; {len(too_long):,} of {len(self):,} rows are too long"
            raise DataError(self.rows.place(too_long[0]), found, fix)


def encode_rows(
    rows: Rows,
    tokenizer: CacheableTokenizer | None,
    settings: EncodeSettings,
    processes: int,
    drop: Sequence[quality.Oddity] = (),
) -> EncodedTable:
    """Encode all rows of a source, or read them from the cache if rows, tokenizer, settings and code are the same.

    Args:
        rows: the checked rows.
        tokenizer: may be None if all rows have ids.
        settings: how to encode.
        processes: largest number of processes; fewer are used for few rows.
        drop: kinds of odd rows that are not used.

    Raises:
        SettingError: there are rows of text, and no tokenizer.
        MachineError: the cache cannot be read or written.
    """
    if tokenizer is None and rows.have_text:
        found = "null, and there are rows of text to encode"
        raise SettingError("data.tokenizer", found, "Name the folder or Hub id of a tokenizer, or give rows of ids.")
    vocabulary = tokenizer.fingerprint if tokenizer else ""
    code = code_digest(__file__, encode.__file__, split.__file__, prompt.__file__, quality.__file__)
    workers = min(processes, len(rows.dataset) // _ROWS_PER_PROCESS)
    fingerprint = digest("encoded", rows.fingerprint, vocabulary, settings, code)
    folder = Path(rows.dataset.cache_files[0]["filename"]).parent

    def encode_all() -> Dataset:
        return rows.dataset.map(
            encode_columns,
            batched=True,
            remove_columns=rows.dataset.column_names,
            features=ENCODED_FEATURES,
            fn_kwargs={"tokenizer": tokenizer, "settings": settings},
            num_proc=workers if workers > 1 else None,
            cache_file_name=str(folder / f"cache-{fingerprint}.arrow"),
            new_fingerprint=fingerprint,
            desc="encoding rows",
        )

    return EncodedTable(rows, cached(folder, fingerprint, encode_all), settings, tuple(drop))


def _numpy(column: object) -> NDArray[np.int64]:
    return np.asarray(column).astype(np.int64)
