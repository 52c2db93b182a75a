"""`kyon-pl build-data`: build training rows from dialogues and role folders, and write them to a file."""

from __future__ import annotations

import glob
import json
import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from kyon_pl.data.encoding.encode import load_tokenizer, token_ids
from kyon_pl.data.reading.files import READERS, has_reader
from kyon_pl.data.reading.quality import Oddity, check_drop
from kyon_pl.data.report import jsonl_writer
from kyon_pl.disk import expand_home
from kyon_pl.errors import DataError, MissingFileError, SettingError
from kyon_pl.logs import from_here
from kyon_pl.outputs import Output, check_outputs, output_file, rows_with, text_that_starts, writing
from kyon_pl.publish.push_data import check_push, push_data
from kyon_pl.roles.contexts import MEMORY_NUMBER, ContextLimits, context_settings
from kyon_pl.roles.memory_order import order_output, remove_orders, write_order
from kyon_pl.roles.prompt_format import QuestionForms, role_format
from kyon_pl.roles.role import Role, find_roles
from kyon_pl.roles.rows import (
    BAD_ROW_KEYS,
    COLUMNS,
    BuildReport,
    BuildSettings,
    built_rows,
    is_our_report,
    with_order_by_use,
)
from kyon_pl.runs.prompt_format import HEAD, MemoryOrder, Mode, Unit, role_formats_file, role_formats_text

log = logging.getLogger("kyon_pl.data")

Rows = Iterator[Mapping[str, str | None]]
_CACHED_LENGTHS = 10_000  # of memories and turns, which occur in many rows
_ROWS_PER_GROUP = 10_000
_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])


def build_data(
    characters: str | list[str],
    output: str,
    dialogues: str | list[str] | None = None,
    aliases: dict[str, list[str]] | None = None,
    mode: Mode = "fixed",
    retrieval: str = "auto",
    memory_number: int = MEMORY_NUMBER,
    memory_length: int | None = None,
    history_length: int | None = None,
    exclude_own_scene: bool = True,
    memory_order: MemoryOrder = "likeness",
    tokenizer: str | None = None,
    tokenizer_revision: str | None = None,
    drop: Sequence[Oddity] = (),
    bad_rows_file: str | None = None,
    push: str | None = None,
    private: bool = True,
) -> None:
    """Build training rows from dialogues and role folders.

    A role folder contains system_prompt.txt; memories as texts/*.txt, or with vectors as
    jsonl/title_text_embed.jsonl; optionally dialogues/*.jsonl, and aliases.txt with one name per line. A dialogue is
    {"dialogue": [{"role": ..., "text": ...}, ...], "source": ...}. Rows that were made from dialogues before,
    {"query": ..., "answer": ..., "chat_history": [...], "embedding": [...]}, are accepted too.

    Args:
        characters: role folders, folders of role folders, or role files (JSONL with text and base64 vectors); demo or
            demo/NAME for roles of the demo.
        output: the file to write, .parquet or .jsonl. Beside it, the report is written to .report.txt, and how prompts
            are written to .prompt_format.yaml, which fit keeps for chat and web.
        dialogues: files, folders or globs; by default, those in the role folders. With several roles, the file name
            must contain the name of the role's folder between underscores, as in bo_at_the_quay.jsonl.
        aliases: for each role, what the names of its speaker start with; by default, the name of its folder.
        mode: fixed, or original to build rows as the published ones were. There, the turn before the question is lost,
            a role's opening turn answers the last turn, memories and history have no separator, and all memories
            after the first that does not fit are left out.
        retrieval: how memories are ranked. auto uses stored vectors if row and memories have some of the same size,
            else lexical; lexical compares shared characters; stored requires stored vectors; anything else is the
            folder or Hub id of a sentence-embedding model.
        memory_number: maximum number of memories in a row.
        memory_length: total length of all memories; default 1000 tokens with a tokenizer, else 2000 characters.
        history_length: total length of the turns before the question; default 500 tokens with a tokenizer, else 1000
            characters. Mode original has no limit.
        exclude_own_scene: leave out memories that contain the row's own answer; mode original keeps them.
        memory_order: order of the memories in a context. likeness: nearest to the question first. frequency: the memory
            that most rows of the role use first, so that rows share longer beginnings (see data.batching shared of
            fit); the dialogues are read twice, and the order is kept in memory_order.json in the role folder, beside a
            role file, where chat and web find it.
        tokenizer: folder or Hub id of a tokenizer, to count lengths in tokens.
        tokenizer_revision: branch, tag or commit of the tokenizer on the Hub.
        drop: kinds of odd rows to leave out, as in data.drop of fit: duplicate, loop, punctuation, leak. The report
            counts all of them. Without a tokenizer, loops are searched in characters. Mode fixed also leaves out rows
            that cannot be trained on, such as those with an empty target.
        bad_rows_file: JSONL file to write, one line for each bad, odd or dropped row with its file and line, what is
            wrong, and whether it is left out.
        push: also push the file to this data set on the Hub, with a card: USER/NAME, or NAME for the account of the
            token from HF_TOKEN or `hf auth login`. The data set is created if it does not exist.
        private: whether a new data set is private; an existing one is not changed.

    Raises:
        MissingFileError: a file or folder does not exist.
        DataError: a file cannot be used, or yields no row.
        SettingError: settings that contradict each other; an output that is neither Parquet nor JSONL, is an input, or
            exists and is not from build-data; no token, or no right to write to the data set.
        MachineError: a sentence-embedding model is named, and sentence-transformers is not installed.
    """
    if mode == "original" and (history_length is not None or tokenizer is not None):
        found = "the original counts characters and has no limit for the history"
        raise SettingError("mode original", found, "Leave history_length and tokenizer out, or use mode fixed.")
    if mode == "original" and memory_order != "likeness":
        found = "the original puts the nearest memory first"
        raise SettingError("mode original", found, "Leave memory_order out, or use mode fixed.")
    check_drop(drop, "drop")
    names = [characters] if isinstance(characters, str) else characters
    ids = _token_ids(tokenizer, tokenizer_revision) if tokenizer else _code_points
    unit: Unit = "tokens" if tokenizer else "characters"
    count = lru_cache(maxsize=_CACHED_LENGTHS)(lambda text: len(ids(text))) if tokenizer else len
    limits = ContextLimits(memory_number, memory_length, history_length)
    context = context_settings(limits, unit, exclude_own_scene, count, mode)
    settings = BuildSettings(retrieval, context, drop, ids)
    roles = [replace(role, memory_ranks=None) for role in find_roles(names, aliases or {})]
    files = files_of_roles(roles, [dialogues] if isinstance(dialogues, str) else dialogues)
    rows_output = output_of_rows(output)
    report_output = output_file("the report of output", rows_output.path.with_suffix(".report.txt"), is_our_report)
    form_output = output_file("prompt form of output", role_formats_file(rows_output.path), text_that_starts(HEAD))
    bad_output = output_file("bad_rows_file", bad_rows_file, rows_with(BAD_ROW_KEYS)) if bad_rows_file else None
    read: dict[str, str | list[str] | None] = {"dialogues": dialogues}
    read |= {f"a file of role {role.name}": str(role.folder) for role in roles if role.folder}
    read["characters"] = [name if Path(name).is_file() else f"{name}/*.jsonl" for name in names]  # role files
    check_outputs([rows_output, report_output, form_output, *([bad_output] if bad_output else [])], read)
    kept = {role.name: _order_output(role, memory_order) for role, _ in files}
    repo_id = check_push(push) if push else None  # before the rows are built
    if memory_order == "frequency":
        files = [(_ordered(role, paths, settings, kept[role.name]), paths) for role, paths in files]
    report = BuildReport(unit)
    questions: dict[str, QuestionForms] = {role.name: QuestionForms() for role in roles}
    with jsonl_writer(bad_output) if bad_output else nullcontext(report.note) as report.note:
        write_rows(rows_output, _with_questions(built_rows(files, settings, report), questions))
    if memory_order == "likeness":
        remove_orders([output for output in kept.values() if output])
    forms = {r.name: role_format(r, questions[r.name], retrieval, context) for r, _ in files}
    with writing(form_output) as written:
        written.write_text(role_formats_text(forms), encoding="utf-8")
    _write_report(report, report_output)
    if bad_rows_file:
        log.info("bad, odd and dropped rows are listed in %s", from_here(bad_rows_file))
    log.info(
        "build-data: %s rows in %s, report in %s",
        f"{report.rows:,}",
        *map(from_here, (rows_output.path, report_output.path)),
    )
    base = f" --model.base {shlex.quote(tokenizer)}" if tokenizer else ""
    log.info("next: kyon-pl preview --data.source %s%s", shlex.quote(str(from_here(rows_output.path))), base)
    if repo_id:
        push_data(repo_id, rows_output.path, {"mode": mode, **report.facts()}, private)


def _order_output(role: Role, memory_order: MemoryOrder) -> Output | None:
    if role.order_file is not None:
        return order_output(role.order_file)
    if memory_order == "frequency":
        found = f"{role.name} is a role of the demo, which cannot keep an order"
        raise SettingError("memory_order frequency", found, "Leave memory_order out, or use a role folder.")
    return None


def _ordered(role: Role, paths: Sequence[Path], settings: BuildSettings, output: Output | None) -> Role:
    """The role with its memories in the order of use, which is kept."""
    assert output is not None
    ordered = with_order_by_use(role, paths, settings)
    ranks = ordered.memory_ranks or {}
    write_order(ranks, output)
    used = f"{len(ranks):,} of {len(role.memories):,}"
    log.info("role %s: %s memories are used; their order is kept in %s", role.name, used, from_here(output.path))
    return ordered


def files_of_roles(roles: Sequence[Role], dialogues: Sequence[str] | None) -> list[tuple[Role, list[Path]]]:
    """The dialogue files of each role.

    Args:
        roles: all roles.
        dialogues: files, folders or globs; None: the folder `dialogues` of each role.

    Raises:
        MissingFileError: there is no file.
        SettingError: a file that cannot be assigned to one of several roles.
        DataError: a file of an unsupported kind.
    """
    if dialogues is None:
        return [(role, _find_files(str((role.folder or Path(role.name)) / "dialogues"))) for role in roles]
    files: dict[str, list[Path]] = {role.name: [] for role in roles}
    for file in (file for name in dialogues for file in _find_files(name)):
        owners = [role.name for role in roles if role.name in file.stem.split("_")] or list(files)
        if len(owners) > 1:
            names = ", ".join(files)
            fix = f"Put the name of the role's folder into the file name, between _, or pass one role: {names}."
            raise SettingError(str(file), "it is not clear which role it belongs to", fix)
        files[owners[0]].append(file)
    return [(role, files[role.name]) for role in roles if files[role.name]]


def _find_files(name: str) -> list[Path]:
    path = expand_home(name)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if has_reader(file))
    else:
        found = [path] if path.is_file() else sorted(Path(match) for match in glob.glob(str(path)))  # noqa: PTH207
    if not found:
        fix = "Put the dialogues there as JSONL, or name their files with --dialogues."
        raise MissingFileError(name, "there is no file with dialogues", fix)
    if unsupported := [file for file in found if not has_reader(file)]:
        raise DataError(str(unsupported[0]), "unsupported kind of file", f"Use one of: {', '.join(READERS)}.")
    return found


def output_of_rows(name: str) -> Output:
    """The output of `build-data`.

    Args:
        name: of the file; it ends in `.parquet` or `.jsonl`.

    Raises:
        SettingError: another suffix, or no path of this machine.
    """
    output = output_file("output", name, is_our_rows_file)
    if output.path.suffix not in WRITERS:
        found = f"{output.path} ends in {output.path.suffix!r}"
        raise SettingError("output", found, f"Use one of: {', '.join(WRITERS)}.")
    return output


def write_rows(output: Output, rows: Iterable[Mapping[str, str | None]]) -> None:
    """Write rows to a temporary file, which replaces the output when it is complete.

    Args:
        output: from `output_of_rows`; its folder is created.
        rows: with `COLUMNS`; read as they are written.

    Raises:
        SettingError: a file that is not ours is there.
        MachineError: the file cannot be written, or another process is writing it.
    """
    with writing(output) as written:
        WRITERS[output.path.suffix](written, iter(rows))


def is_our_rows_file(path: Path) -> bool:
    """Whether a file has the columns that `write_rows` writes, in their order."""
    if path.suffix == ".parquet":
        try:
            return tuple(parquet.read_schema(path).names) == COLUMNS
        except pa.ArrowException:
            return False
    return rows_with(COLUMNS)(path)


def _write_jsonl(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _write_parquet(path: Path, rows: Rows) -> None:
    with parquet.ParquetWriter(path, _SCHEMA) as writer:
        while group := list(islice(rows, _ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, _SCHEMA))


WRITERS: dict[str, Callable[[Path, Rows], None]] = {".parquet": _write_parquet, ".jsonl": _write_jsonl}


def _with_questions(rows: Rows, questions: Mapping[str, QuestionForms]) -> Rows:
    """The rows; the questions are counted by role as they pass."""
    for row in rows:
        questions[str(row["character"])].add(str(row["question"]))
        yield row


def _write_report(report: BuildReport, output: Output) -> None:
    """Write the report beside the rows, and log it."""
    lines = list(report.lines())
    with writing(output) as written:
        written.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for line in lines:
        log.info("%s", line)


def _token_ids(name: str, revision: str | None) -> Callable[[str], list[int]]:
    tokenizer = load_tokenizer(name, revision)
    if tokenizer is None:
        raise SettingError("tokenizer", f"there is none called {name}", "Name a folder or Hub id.")

    return partial(token_ids, tokenizer=tokenizer)


def _code_points(text: str) -> list[int]:
    return [*map(ord, text)]
