"""Rows built from a role's dialogues, and the file that they are written to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import parquet

from kyon_pl.data.reading.checks import ColumnNames, check_row
from kyon_pl.data.reading.quality import Oddity, Seen, bits, oddities, row_hash
from kyon_pl.errors import DataError, SettingError
from kyon_pl.roles.contexts import BuiltContext, ContextSettings, build_context, original_context, original_memory
from kyon_pl.roles.dialogues import DialogueRow, Dropped, Made, Mode, read_dialogue_rows, speakers_in
from kyon_pl.roles.report import BuildReport
from kyon_pl.roles.retrieval import Retriever
from kyon_pl.roles.role import Role

COLUMNS = ("context", "target", "character", "question", "dialogue", "source")
"""The first two are trained on. `dialogue`: role, file and number, for a split by it; null if not known."""

Rows = Iterator[Mapping[str, str | None]]
_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
_ROWS_A_GROUP = 10_000


def write_rows(path: Path, rows: Iterable[Mapping[str, str | None]]) -> None:
    """Write rows beside their place, and rename the file when it is whole; an old one stays until then.

    Args:
        path: ends in `.parquet` or `.jsonl`; its folder is made if need be.
        rows: with `COLUMNS`; read as they are written.

    Raises:
        SettingError: another ending.
    """
    if path.suffix not in WRITERS:
        raise SettingError("output", f"{path} ends in {path.suffix!r}", f"Use one of: {', '.join(WRITERS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        WRITERS[path.suffix](part, iter(rows))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_jsonl(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _write_parquet(path: Path, rows: Rows) -> None:
    with parquet.ParquetWriter(path, _SCHEMA) as writer:
        while batch := list(islice(rows, _ROWS_A_GROUP)):
            writer.write_table(pa.Table.from_pylist(batch, _SCHEMA))


WRITERS: dict[str, Callable[[Path, Rows], None]] = {".parquet": _write_parquet, ".jsonl": _write_jsonl}


T = TypeVar("T")
_ROWS_AT_ONCE = 1000
_NO_TEXT_FILE_HOLDS = "half a character"  # the kind of problem


@dataclass(frozen=True)
class BuildSettings:
    """How rows are made.

    Attributes:
        mode: see `build_data`.
        retrieval: see `build_data`.
        context: what goes into a context.
        drop: kinds of odd rows to leave out.
        ids: of a text, to look for loops in: its tokens, or its characters.
    """

    mode: Mode
    retrieval: str
    context: ContextSettings
    drop: Sequence[Oddity]
    ids: Callable[[str], Sequence[int]]


def built_rows(
    files: list[tuple[Role, list[Path]]], settings: BuildSettings, report: BuildReport
) -> Iterator[dict[str, str | None]]:
    """The rows to write, with the columns of `kyon_pl.roles.rows`.

    Args:
        files: of each role.
        settings: how to make them.
        report: counts what is read, left out and made.

    Raises:
        DataError: a file cannot be used, or yields no row.
        KyonError: as `Retriever`.
    """
    seen = Seen()
    for role, paths in files:
        retriever = Retriever(role, settings.retrieval)
        for path in paths:
            before, dropped_before = report.rows, report.dropped.copy()
            for batch in _batches(read_dialogue_rows(path, role.aliases, settings.mode), _ROWS_AT_ONCE):
                yield from _rows_of_batch(role, retriever, batch, settings, seen, report)
            if report.rows == before:
                raise _no_row(path, role, report.dropped - dropped_before)
        report.ways.update(retriever.ways)


def _rows_of_batch(
    role: Role, retriever: Retriever, batch: list[Made], settings: BuildSettings, seen: Seen, report: BuildReport
) -> Iterator[dict[str, str | None]]:
    rows = [made.row for made in batch if not isinstance(made.row, Dropped)]
    contexts = _contexts(role, retriever, rows, settings)
    for made in batch:
        if isinstance(made.row, Dropped):
            report.count_dropped(made, made.row.reason)
            continue
        context, target = next(contexts), made.row["answer"]
        problem = str(check_row({"context": context.text, "target": target}, ColumnNames())["problem"])
        if problem.startswith(_NO_TEXT_FILE_HOLDS) or (problem and settings.mode == "fixed"):
            report.count_dropped(made, problem)
            continue
        odd = 0 if problem else oddities(context.text, target, settings.ids(target))
        if not problem and seen.before(row_hash(context.text, target, ())):
            odd |= bits(["duplicate"])
        length = settings.context.count(context.text + target)
        if report.count_row(made, problem, odd, settings.drop, length, context.remarks):
            report.characters[role.name] += 1
            yield _row_to_write(role, made, made.row, context.text)


def _contexts(
    role: Role, retriever: Retriever, rows: list[DialogueRow], settings: BuildSettings
) -> Iterator[BuiltContext]:
    number, original = settings.context.memory_number, settings.mode == "original"
    # in fixed mode as many again, to take the place of those that are passed over
    ranked = retriever.rank(rows, number if original else 2 * number)
    for row, places in zip(rows, ranked, strict=True):
        memories = [role.memories[place] for place in places]
        if original:
            memory = original_memory(memories, settings.context.memory_length)
            text = original_context(role.system_prompt, memory, row["chat_history"], row["query"])
            yield BuiltContext(text, (), frozenset())
        else:
            yield build_context(role.system_prompt, memories, row, settings.context)


def _row_to_write(role: Role, made: Made, row: DialogueRow, context: str) -> dict[str, str | None]:
    return {
        "context": context,
        "target": row["answer"],
        "character": role.name,
        "question": row["query"],
        "dialogue": f"{role.name}/{made.file.name}#{made.number}" if made.of_dialogue else None,
        "source": row["source"].encode("utf-8", "replace").decode(),  # nothing else has checked it
    }


def _no_row(path: Path, role: Role, dropped: Counter[str]) -> DataError:
    kinds = ", ".join(f"{count:,} × {kind}" for kind, count in dropped.most_common())
    speakers = speakers_in(path)[:5]
    fix = f"The names of the role's turns must begin with {' or '.join(map(repr, role.aliases))}"
    fix += f"; here speak {', '.join(speakers)}" if speakers else ""
    fix += f'. Write its names into aliases.txt, or give --aliases \'{{"{role.name}": ["..."]}}\'.'
    return DataError(str(path), f"not one row for role {role.name} ({kinds or 'the file is empty'})", fix)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
