"""The rows that `build-data` makes from a role's dialogues, and the report that counts them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from kyon_pl.data.reading.checks import check_row
from kyon_pl.data.reading.columns import ColumnNames
from kyon_pl.data.reading.quality import ODDITIES, Oddity, Seen, bits, names, oddities, row_hash
from kyon_pl.errors import DataError
from kyon_pl.outputs import text_that_starts
from kyon_pl.preview.histogram import bar_lines
from kyon_pl.roles.contexts import BuiltContext, ContextSettings, build_context
from kyon_pl.roles.dialogues import DialogueRow, Dropped, ReadRow, read_dialogue_rows, speakers_in
from kyon_pl.roles.memory_order import ranks_by_use
from kyon_pl.roles.retrieval import Retriever
from kyon_pl.roles.role import Role

COLUMNS = ("context", "target", "character", "question", "dialogue", "source")
"""The first two are trained on. `dialogue` is role, file and number, for a split by dialogue; null if not known."""

BAD_ROW_KEYS = ("file", "line", "object", "left_out", "problem", "odd", "target")
"""Of a row in `bad_rows_file`."""

_REPORT_START = "read       "
_ROWS_PER_BATCH = 1000
_MAX_PLACES = 5
_MAX_SPEAKERS = 5


@dataclass(frozen=True)
class BuildSettings:
    """How rows are made.

    Attributes:
        retrieval: see `build_data`.
        context: how contexts are built.
        drop: kinds of odd rows to leave out.
        ids: the tokens or characters of a text, in which loops are searched.
    """

    retrieval: str
    context: ContextSettings
    drop: Sequence[Oddity]
    ids: Callable[[str], Sequence[int]]


@dataclass
class BuildReport:
    """Counts rows. `read` is the sum of `rows` and `dropped`.

    Attributes:
        unit: of lengths, `characters` or `tokens`.
        note: called with each row that is bad, odd or dropped: the keys of `data.bad_rows_file`, and `object`, the
            number of the object in the file.
        read: turns of the role and ready-made rows, including those that could not be read.
        rows: written rows.
        dropped: dropped rows by reason; an odd row by its first kind in `drop`.
        dropped_places: the first few dropped rows, with their reasons.
        odd: odd rows by kind, see `kyon_pl.data.reading.quality`, including dropped ones.
        bad: written rows that cannot be trained on, by kind; in mode `original` only.
        remarks: rows in which something was left out or changed, by kind.
        characters: rows by role.
        speakers: rows by the speaker of the answer, where it is known.
        rankings: rows by how their memories were ranked.
        lengths: length of context and target together, for each row.
    """

    unit: str
    note: Callable[[Mapping[str, object]], object] = lambda _: None
    read: int = 0
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_places: list[str] = field(default_factory=list)
    odd: Counter[Oddity] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    speakers: Counter[str] = field(default_factory=Counter)
    rankings: Counter[str] = field(default_factory=Counter)
    lengths: array[int] = field(default_factory=lambda: array("i"))

    def count_dropped(self, item: ReadRow, reason: str) -> None:
        """Count what is no row, or an unusable one."""
        self.read += 1
        self._count_dropped(item, reason)
        self._note(item, reason, odd=0, left_out=True)

    def count_row(
        self, item: ReadRow, problem: str, odd: int, drop: Sequence[Oddity], length: int, remarks: Iterable[str]
    ) -> bool:
        """Count a row.

        Args:
            item: the row.
            problem: why it cannot be trained on, if it is to be written nevertheless.
            odd: kinds of oddities, as `kyon_pl.data.reading.quality.bits`.
            drop: kinds of odd rows that are left out.
            length: of context and target.
            remarks: what was left out or changed in it.

        Returns:
            Whether to write it.
        """
        self.read += 1
        self.odd.update(names(odd))
        reasons = names(odd & bits(drop))
        if problem or odd:
            self._note(item, problem, odd, left_out=bool(reasons))
        if reasons:
            self._count_dropped(item, ODDITIES[reasons[0]])
            return False
        self.rows += 1
        self.lengths.append(length)
        self.remarks.update(remarks)
        if problem:
            self.bad[problem.split(":")[0]] += 1
        if item.of_dialogue:
            self.speakers[_target(item).partition(":")[0]] += 1
        return True

    def _count_dropped(self, item: ReadRow, reason: str) -> None:
        self.dropped[reason.split(":")[0]] += 1
        if len(self.dropped_places) < _MAX_PLACES:
            self.dropped_places.append(f"{item.place}: {reason}")

    def _note(self, item: ReadRow, problem: str, odd: int, left_out: bool) -> None:
        self.note(
            {
                "file": str(item.file),
                "line": item.line,
                "object": item.number,
                "left_out": left_out,
                "problem": problem,
                "odd": names(odd),
                "target": "" if problem else _target(item)[:80],
            }
        )

    def facts(self) -> dict[str, str]:
        """The counts for a public data card, without names of files and folders."""
        return {
            "rows": f"{self.rows:,}",
            "characters": _joined(self.characters),
            "dropped": _joined(self.dropped) or "0",
            **{text: f"{self.odd[kind]:,}" for kind, text in ODDITIES.items()},
        }

    def lines(self) -> Iterator[str]:
        """The lines of the report."""
        yield f"{_REPORT_START}{self.read:>11,}   turns of the roles, and ready-made rows"
        yield f"written    {self.rows:>11,}   rows"
        yield f"dropped    {self.dropped.total():>11,}"
        yield from _counted(self.dropped)
        yield from (f"    {place}" for place in self.dropped_places)
        if self.bad:
            yield f"bad        {self.bad.total():>11,}   rows, written as by the original; fit leaves them out"
            yield from _counted(self.bad)
        yield "odd rows, among those that can be trained on"
        yield from (f"  {self.odd[kind]:>9,} × {text}" for kind, text in ODDITIES.items())
        if self.speakers:
            more = len(self.speakers) - _MAX_SPEAKERS
            shown = ", ".join(f"{name} × {count:,}" for name, count in self.speakers.most_common(_MAX_SPEAKERS))
            yield f"speakers of the targets: {shown}" + (f", and {more:,} more" if more > 0 else "")
        yield "memories were ranked"
        yield from _counted(self.rankings)
        if self.remarks:
            yield "changes to contexts"
            yield from _counted(self.remarks)
        if self.rows:
            lengths = np.asarray(self.lengths)
            median, longest = f"{np.median(lengths):,.0f}", f"{lengths.max():,}"
            yield f"{self.unit} per row, context and target: median {median}, max {longest}"
            yield from bar_lines(lengths)


is_our_report = text_that_starts(_REPORT_START)


def _counted(counts: Counter[str]) -> Iterator[str]:
    return (f"  {count:>9,} × {kind}" for kind, count in counts.most_common())


def _joined(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} × {kind}" for kind, count in counts.most_common())


def _target(item: ReadRow) -> str:
    return "" if isinstance(item.row, Dropped) else item.row["answer"]


def built_rows(
    files: list[tuple[Role, list[Path]]], settings: BuildSettings, report: BuildReport
) -> Iterator[dict[str, str | None]]:
    """Rows with `COLUMNS`.

    Args:
        files: the files of each role.
        settings: how to make rows.
        report: counts the rows that are read, dropped and made.

    Raises:
        DataError: a file cannot be used, or yields no row.
        KyonError: as `Retriever`.
    """
    seen = Seen()
    for role, paths in files:
        retriever = Retriever(role, settings.retrieval)
        for path in paths:
            before, dropped_before = report.rows, report.dropped.copy()
            items = read_dialogue_rows(path, role.aliases, settings.context.mode)
            while batch := list(islice(items, _ROWS_PER_BATCH)):
                yield from _rows_of_batch(role, retriever, batch, settings, seen, report)
            if report.rows == before:
                raise _no_row_error(path, role, report.dropped - dropped_before)
        report.rankings.update(retriever.rankings)


def with_order_by_use(role: Role, paths: Sequence[Path], settings: BuildSettings) -> Role:
    """The role with its memories in the order of use, the one that most of its rows use first.

    Args:
        role: the role.
        paths: its files, which are read once for this.
        settings: how its rows will be made; mode `fixed`.

    Raises:
        KyonError: as `built_rows`.
    """
    retriever, uses = Retriever(role, settings.retrieval), Counter[str]()
    for path in paths:
        items = read_dialogue_rows(path, role.aliases, settings.context.mode)
        while batch := list(islice(items, _ROWS_PER_BATCH)):
            rows = [item.row for item in batch if not isinstance(item.row, Dropped)]
            for context in _contexts(role, retriever, rows, settings):
                uses.update(context.memories)
    return replace(role, memory_ranks=ranks_by_use(role.memories, uses))


def _rows_of_batch(
    role: Role, retriever: Retriever, batch: list[ReadRow], settings: BuildSettings, seen: Seen, report: BuildReport
) -> Iterator[dict[str, str | None]]:
    rows = [item.row for item in batch if not isinstance(item.row, Dropped)]
    contexts = _contexts(role, retriever, rows, settings)
    for item in batch:
        if isinstance(item.row, Dropped):
            report.count_dropped(item, item.row.reason)
            continue
        context, target = next(contexts), item.row["answer"]
        problem = str(check_row({"context": context.text, "target": target}, ColumnNames())["problem"])
        if problem and (settings.context.mode == "fixed" or not _is_unicode(context.text + target)):
            report.count_dropped(item, problem)
            continue
        odd = 0 if problem else oddities(context.text, target, settings.ids(target))
        if not problem and seen.before(row_hash(context.text, target, ())):
            odd |= bits(["duplicate"])
        length = settings.context.count(context.text + target)
        if report.count_row(item, problem, odd, settings.drop, length, context.remarks):
            report.characters[role.name] += 1
            yield _output_row(role, item, item.row, context.text)


def _is_unicode(text: str) -> bool:
    """Whether a text can be written to a file: it has no lone surrogates."""
    return text.encode("utf-8", "replace").decode() == text


def _contexts(
    role: Role, retriever: Retriever, rows: list[DialogueRow], settings: BuildSettings
) -> Iterator[BuiltContext]:
    for row, indices in zip(rows, retriever.rank(rows, settings.context.candidates), strict=True):
        memories = [role.memories[i] for i in indices]
        yield build_context(role.system_prompt, memories, row, settings.context, role.memory_ranks)


def _output_row(role: Role, item: ReadRow, row: DialogueRow, context: str) -> dict[str, str | None]:
    return {
        "context": context,
        "target": row["answer"],
        "character": role.name,
        "question": row["query"],
        "dialogue": f"{role.name}/{item.file.name}#{item.number}" if item.of_dialogue else None,
        "source": row["source"].encode("utf-8", "replace").decode(),  # not checked before
    }


def _no_row_error(path: Path, role: Role, dropped: Counter[str]) -> DataError:
    speakers = speakers_in(path)[:5]
    fix = f"The speaker of the role's turns must start with {' or '.join(map(repr, role.aliases))}"
    fix += f"; the speakers in this file are {', '.join(speakers)}" if speakers else ""
    fix += f'. Write its names to aliases.txt, or pass --aliases \'{{"{role.name}": ["..."]}}\'.'
    return DataError(str(path), f"no row for role {role.name} ({_joined(dropped) or 'the file is empty'})", fix)
