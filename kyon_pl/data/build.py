"""`kyon-pl build-data`: dialogues and role folders in, rows of `context` and `target` out."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from kyon_pl.data.build_report import BuildReport
from kyon_pl.data.contexts import BuiltContext, ContextSettings, build_context, original_context, original_memory
from kyon_pl.data.dialogues import DialogueRow, Dropped, Made, Mode, read_dialogue_rows, speakers_in
from kyon_pl.data.readers import READERS
from kyon_pl.data.retrieval import Retriever
from kyon_pl.data.roles import Role, find_roles
from kyon_pl.data.row_writer import write_rows
from kyon_pl.errors import DataError, MissingFileError, SettingError
from kyon_pl.logs import from_here

T = TypeVar("T")
ORIGINAL_MEMORY_LENGTH = 2000  # characters
ROOM = {"characters": (ORIGINAL_MEMORY_LENGTH, 1000), "tokens": (1000, 500)}  # for memories, for the history
_ROWS_AT_ONCE = 1000
log = logging.getLogger("kyon_pl.data")


def build_data(
    characters: str | list[str],
    output: str,
    dialogues: str | list[str] | None = None,
    aliases: dict[str, list[str]] | None = None,
    mode: Mode = "fixed",
    retrieval: str = "auto",
    memory_number: int = 8,
    memory_length: int | None = None,
    history_length: int | None = None,
    exclude_own_scene: bool = True,
    tokenizer: str | None = None,
    tokenizer_revision: str | None = None,
) -> None:
    """Make training rows from dialogues and role folders.

    A role folder holds system_prompt.txt; memories, as texts/*.txt or as jsonl/title_text_embed.jsonl with stored
    vectors; dialogues/*.jsonl, unless they are named; and aliases.txt, one a line, if the role's name is not the
    folder's. A dialogue is {"dialogue": [{"role": ..., "text": ...}, ...], "source": ...}; a row made from one before,
    {"query": ..., "answer": ..., "chat_history": [...], "embedding": [...]}, is taken too.

    Args:
        characters: role folders, folders of role folders, or role files (JSONL with text and base64 vectors).
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

    Raises:
        MissingFileError: a file or folder is not there.
        DataError: a file cannot be used, or yields no row.
        SettingError: settings that do not fit each other, or an output that is neither Parquet nor JSONL.
        MachineError: a sentence-embedding model is asked for, and sentence-transformers is not installed.
    """
    if mode == "original" and (history_length is not None or tokenizer is not None):
        found = "the original counts characters and has no limit for the history"
        raise SettingError("mode original", found, "Leave history_length and tokenizer out, or use mode fixed.")
    count, unit = (_token_counter(tokenizer, tokenizer_revision), "tokens") if tokenizer else (len, "characters")
    room_for_memories, room_for_history = ROOM[unit]
    settings = ContextSettings(
        memory_number,
        room_for_memories if memory_length is None else memory_length,
        room_for_history if history_length is None else history_length,
        exclude_own_scene,
        count,
    )
    if min(settings.memory_number, settings.memory_length, settings.history_length) < 0:
        raise SettingError("memory_number, memory_length, history_length", "a negative number", "Give 0 or more.")
    roles = find_roles([characters] if isinstance(characters, str) else characters, aliases or {})
    files = files_of_roles(roles, [dialogues] if isinstance(dialogues, str) else dialogues)
    report = BuildReport(unit)
    write_rows(Path(output), _built_rows(files, mode, retrieval, settings, report))
    lines = list(report.lines())
    written = Path(output).with_suffix(".report.txt")
    written.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for line in lines:
        log.info("%s", line)
    log.info("build-data: %s rows in %s, report in %s", f"{report.rows:,}", from_here(output), from_here(written))


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


def _built_rows(
    files: list[tuple[Role, list[Path]]], mode: Mode, retrieval: str, settings: ContextSettings, report: BuildReport
) -> Iterator[dict[str, str | None]]:
    """The rows to write, and the report on them."""
    for role, paths in files:
        retriever = Retriever(role, retrieval)
        for path in paths:
            before, dropped_before = report.rows, report.dropped.copy()
            for batch in _batches(read_dialogue_rows(path, role.aliases, mode), _ROWS_AT_ONCE):
                for made in batch:
                    report.count_read(made)
                good = [(made, made.row) for made in batch if not isinstance(made.row, Dropped)]
                for (made, row), context in zip(
                    good, _contexts(role, retriever, [row for _, row in good], mode, settings), strict=True
                ):
                    report.remarks.update(context.remarks)
                    report.count_row(row["query"], row["answer"], settings.count(context.text + row["answer"]))
                    if made.of_dialogue:
                        report.speakers[row["answer"].partition(":")[0]] += 1
                    yield _row_to_write(role, made, row, context.text)
            if report.rows == before:
                raise _no_row(path, role, report.dropped - dropped_before)
        report.ways.update(retriever.ways)


def _contexts(
    role: Role, retriever: Retriever, rows: list[DialogueRow], mode: Mode, settings: ContextSettings
) -> Iterator[BuiltContext]:
    # in fixed mode as many again, to take the place of those that are passed over
    ranked = retriever.rank(rows, settings.memory_number * (2 if mode == "fixed" else 1))
    for row, places in zip(rows, ranked, strict=True):
        memories = [role.memories[place] for place in places]
        if mode == "original":
            memory = original_memory(memories, settings.memory_length)
            text = original_context(role.system_prompt, memory, row["chat_history"], row["query"])
            yield BuiltContext(text, frozenset())
        else:
            yield build_context(role.system_prompt, memories, row, settings)


def _row_to_write(role: Role, made: Made, row: DialogueRow, context: str) -> dict[str, str | None]:
    return {
        "context": context,
        "target": row["answer"],
        "character": role.name,
        "question": row["query"],
        "dialogue": f"{role.name}/{made.file.name}#{made.number}" if made.of_dialogue else None,
        "source": row["source"],
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


def _token_counter(name: str, revision: str | None) -> Callable[[str], int]:
    from kyon_pl.data.datamodule import load_tokenizer  # imports Lightning

    tokenizer: Any = load_tokenizer(name, revision)
    if tokenizer is None:
        raise SettingError("tokenizer", f"there is none called {name}", "Name a folder or Hub id.")

    @lru_cache(maxsize=100_000)
    def count(text: str) -> int:
        return len(tokenizer([text], add_special_tokens=False, return_attention_mask=False)["input_ids"][0])

    return count
