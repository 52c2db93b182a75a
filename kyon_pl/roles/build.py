"""`kyon-pl build-data`: build training rows from dialogues and role folders, and write them to a file."""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyarrow import parquet

from kyon_pl.data.encoding.encode import load_tokenizer
from kyon_pl.data.reading.files import READERS, has_reader
from kyon_pl.data.reading.quality import Oddity, check_drop
from kyon_pl.data.report import jsonl_writer
from kyon_pl.errors import DataError, MissingFileError, SettingError
from kyon_pl.logs import from_here
from kyon_pl.publish.push_data import check_push, push_data
from kyon_pl.roles.contexts import MEMORY_NUMBER, ContextLimits, context_settings
from kyon_pl.roles.dialogues import Mode
from kyon_pl.roles.role import Role, find_roles
from kyon_pl.roles.rows import COLUMNS, BuildReport, BuildSettings, built_rows

log = logging.getLogger("kyon_pl.data")

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
        output: the file to write, .parquet or .jsonl; the report is written to .report.txt beside it.
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
        SettingError: settings that contradict each other, or an output that is neither Parquet nor JSONL; no token, or
            no right to write to the data set.
        MachineError: a sentence-embedding model is named, and sentence-transformers is not installed.
    """
    if mode == "original" and (history_length is not None or tokenizer is not None):
        found = "the original counts characters and has no limit for the history"
        raise SettingError("mode original", found, "Leave history_length and tokenizer out, or use mode fixed.")
    check_drop(drop, "drop")
    ids = _token_ids(tokenizer, tokenizer_revision) if tokenizer else _code_points
    unit: Literal["tokens", "characters"] = "tokens" if tokenizer else "characters"
    count = lru_cache(maxsize=_CACHED_LENGTHS)(lambda text: len(ids(text))) if tokenizer else len
    limits = ContextLimits(memory_number, memory_length, history_length)
    settings = BuildSettings(mode, retrieval, context_settings(limits, unit, exclude_own_scene, count), drop, ids)
    roles = find_roles([characters] if isinstance(characters, str) else characters, aliases or {})
    files = files_of_roles(roles, [dialogues] if isinstance(dialogues, str) else dialogues)
    repo_id = check_push(push) if push else None  # before the rows are built
    report = BuildReport(unit)
    bad_rows = jsonl_writer(Path(bad_rows_file), "bad_rows_file") if bad_rows_file else nullcontext(report.note)
    with bad_rows as report.note:
        write_rows(Path(output), built_rows(files, settings, report))
    report_file = _write_report(report, Path(output))
    if bad_rows_file:
        log.info("bad, odd and dropped rows are listed in %s", from_here(bad_rows_file))
    log.info("build-data: %s rows in %s, report in %s", f"{report.rows:,}", from_here(output), from_here(report_file))
    if repo_id:
        push_data(repo_id, Path(output), {"mode": mode, **report.facts()}, private)


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
    path = Path(name).expanduser()
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


def write_rows(path: Path, rows: Iterable[Mapping[str, str | None]]) -> None:
    """Write rows to a temporary file, and rename it when it is complete; an existing file stays until then.

    Args:
        path: ends in `.parquet` or `.jsonl`; its folder is created.
        rows: with `COLUMNS`; read as they are written.

    Raises:
        SettingError: another suffix.
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


Rows = Iterator[Mapping[str, str | None]]


def _write_jsonl(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _write_parquet(path: Path, rows: Rows) -> None:
    with parquet.ParquetWriter(path, _SCHEMA) as writer:
        while group := list(islice(rows, _ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, _SCHEMA))


WRITERS: dict[str, Callable[[Path, Rows], None]] = {".parquet": _write_parquet, ".jsonl": _write_jsonl}


def _write_report(report: BuildReport, output: Path) -> Path:
    """Write the report beside the rows, and log it."""
    lines = list(report.lines())
    file = output.with_suffix(".report.txt")
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for line in lines:
        log.info("%s", line)
    return file


def _token_ids(name: str, revision: str | None) -> Callable[[str], list[int]]:
    tokenizer: Any = load_tokenizer(name, revision)
    if tokenizer is None:
        raise SettingError("tokenizer", f"there is none called {name}", "Name a folder or Hub id.")

    def ids(text: str) -> list[int]:
        return list(tokenizer([text], add_special_tokens=False, return_attention_mask=False)["input_ids"][0])

    return ids


def _code_points(text: str) -> list[int]:
    return [*map(ord, text)]
