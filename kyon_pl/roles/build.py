"""`kyon-pl build-data`: dialogues and role folders in, rows of `context` and `target` out."""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from kyon_pl.data.encoding.encode import load_tokenizer
from kyon_pl.data.reading.files import READERS
from kyon_pl.data.reading.quality import Oddity, check_drop
from kyon_pl.data.report import jsonl_writer
from kyon_pl.errors import DataError, MissingFileError, SettingError
from kyon_pl.logs import from_here
from kyon_pl.publish.push_data import check_push, push_data
from kyon_pl.roles.contexts import MEMORY_NUMBER, Room, context_settings
from kyon_pl.roles.dialogues import Mode
from kyon_pl.roles.report import BuildReport
from kyon_pl.roles.role import Role, find_roles
from kyon_pl.roles.rows import BuildSettings, built_rows, write_rows

_LENGTHS_KEPT = 10_000  # of memories and of turns, which come again in the next rows
log = logging.getLogger("kyon_pl.data")


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
    """Make training rows from dialogues and role folders.

    A role folder holds system_prompt.txt; memories, as texts/*.txt or as jsonl/title_text_embed.jsonl with stored
    vectors; dialogues/*.jsonl, unless they are named; and aliases.txt, one a line, if the role's name is not the
    folder's. A dialogue is {"dialogue": [{"role": ..., "text": ...}, ...], "source": ...}; a row made from one before,
    {"query": ..., "answer": ..., "chat_history": [...], "embedding": [...]}, is taken too.

    Args:
        characters: role folders, folders of role folders, or role files (JSONL with text and base64 vectors); demo,
            or demo/NAME: the demo's.
        output: the file to write, .parquet or .jsonl; the report stands beside it as .report.txt.
        dialogues: files, folders or globs; those in the role folders if unset. Of several roles, a file belongs to
            the one whose folder's name is a part of its own, as in bo_at_the_quay.jsonl.
        aliases: what the names of a role's turns begin with, by the name of its folder.
        mode: fixed, or original: as the published rows were made, with the turn before the question lost, a role's
            opening turn answering the last one, no separator between memories and history, and memories left out from
            the first one on that does not fit.
        retrieval: how a question finds its memories. auto: by stored vectors where row and memories have some of the
            same size, else lexical: by shared characters; stored: the former only; or the folder or Hub id of a
            sentence-embedding model.
        memory_number: the most memories of a row.
        memory_length: of all memories of a row, in tokens if a tokenizer is given (1000), else in characters (2000).
        history_length: of the turns before the question, likewise (500 tokens or 1000 characters); original has no
            limit.
        exclude_own_scene: leave out memories that hold the row's own answer; original keeps them.
        tokenizer: folder or Hub id of a tokenizer, to count lengths in tokens.
        tokenizer_revision: branch, tag or commit of the tokenizer on the Hub.
        drop: kinds of odd rows to leave out, as in data.drop of fit: duplicate, loop, punctuation, leak. All are
            counted in the report. Without a tokenizer, a loop is one of characters. Rows that cannot be trained on,
            such as those with an empty target, are left out in mode fixed.
        bad_rows_file: JSONL to write, one line for each row that is bad, odd or dropped: its file and line, what is
            wrong, and whether it is left out.
        push: send the file to this data set on the Hub, too, with a card: USER/NAME, or NAME for the account of the
            token, which comes from HF_TOKEN or from `hf auth login`. The data set is made if need be.
        private: whether a data set that is made now is private; one that exists stays as it is.

    Raises:
        MissingFileError: a file or folder is not there.
        DataError: a file cannot be used, or yields no row.
        SettingError: settings that do not fit each other, or an output that is neither Parquet nor JSONL; no token, or
            no right to write to the data set.
        MachineError: a sentence-embedding model is asked for, and sentence-transformers is not installed.
    """
    if mode == "original" and (history_length is not None or tokenizer is not None):
        found = "the original counts characters and has no limit for the history"
        raise SettingError("mode original", found, "Leave history_length and tokenizer out, or use mode fixed.")
    check_drop(drop, "drop")
    ids = _token_ids(tokenizer, tokenizer_revision) if tokenizer else _characters
    unit: Literal["tokens", "characters"] = "tokens" if tokenizer else "characters"
    count = lru_cache(maxsize=_LENGTHS_KEPT)(lambda text: len(ids(text))) if tokenizer else len
    context = context_settings(Room(memory_number, memory_length, history_length), unit, exclude_own_scene, count)
    roles = find_roles([characters] if isinstance(characters, str) else characters, aliases or {})
    files = files_of_roles(roles, [dialogues] if isinstance(dialogues, str) else dialogues)
    repo_id = check_push(push) if push else None  # before the work, not after it
    report = BuildReport(unit)
    with (
        jsonl_writer(Path(bad_rows_file), "bad_rows_file") if bad_rows_file else nullcontext(report.note) as report.note
    ):
        settings = BuildSettings(mode, retrieval, context, drop, ids)
        write_rows(Path(output), built_rows(files, settings, report))
    written = _write_report(report, Path(output))
    if bad_rows_file:
        log.info("bad, odd and dropped rows are listed in %s", from_here(bad_rows_file))
    log.info("build-data: %s rows in %s, report in %s", f"{report.rows:,}", from_here(output), from_here(written))
    if repo_id:
        push_data(repo_id, Path(output), {"mode": mode, **report.facts()}, private)


def files_of_roles(roles: Sequence[Role], dialogues: Sequence[str] | None) -> list[tuple[Role, list[Path]]]:
    """The files that each role's rows come from.

    Args:
        roles: all roles.
        dialogues: files, folders or globs; None: those in the folder `dialogues` of each role.

    Raises:
        MissingFileError: there is none.
        SettingError: a file that belongs to none of several roles.
        DataError: a file of a kind that is not read here.
    """
    if dialogues is None:
        return [(role, _expand(str((role.folder or Path(role.name)) / "dialogues"))) for role in roles]
    files: dict[str, list[Path]] = {role.name: [] for role in roles}
    for file in (file for name in dialogues for file in _expand(name)):
        owners = [role.name for role in roles if role.name in file.stem.split("_")] or list(files)
        if len(owners) > 1:
            fix = f"Put the folder's name into the file's, between _, or name one role: {', '.join(files)}."
            raise SettingError(str(file), "it is not clear whose rows these are", fix)
        files[owners[0]].append(file)
    return [(role, files[role.name]) for role in roles if files[role.name]]


def _write_report(report: BuildReport, output: Path) -> Path:
    """Beside the rows, and into the log."""
    lines = list(report.lines())
    file = output.with_suffix(".report.txt")
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for line in lines:
        log.info("%s", line)
    return file


def _expand(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in READERS)
    else:
        found = [path] if path.is_file() else sorted(Path(match) for match in glob.glob(str(path)))  # noqa: PTH207
    if not found:
        fix = "Put the dialogues there as JSONL, or name their files with --dialogues."
        raise MissingFileError(name, "there is no file with dialogues", fix)
    if odd := [file for file in found if file.suffix.lower() not in READERS]:
        raise DataError(str(odd[0]), "files of this kind are not read here", f"Use one of: {', '.join(READERS)}.")
    return found


def _token_ids(name: str, revision: str | None) -> Callable[[str], list[int]]:
    tokenizer: Any = load_tokenizer(name, revision)
    if tokenizer is None:
        raise SettingError("tokenizer", f"there is none called {name}", "Name a folder or Hub id.")

    def ids(text: str) -> list[int]:
        return list(tokenizer([text], add_special_tokens=False, return_attention_mask=False)["input_ids"][0])

    return ids


def _characters(text: str) -> list[int]:
    return [*map(ord, text)]
