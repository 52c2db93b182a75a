"""The folder of a comparison: which sides and questions it belongs to, and the replies of the sides."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from kyon_pl.chat.model import ChatModel, ChatReply, Sampling
from kyon_pl.disk import write_atomically
from kyon_pl.errors import DataError, SettingError
from kyon_pl.files import read_json_object
from kyon_pl.judge.journal import Journal
from kyon_pl.judge.questions import Question, QuestionRows, questions_hash
from kyon_pl.judge.sides import Side
from kyon_pl.logs import from_here

log = logging.getLogger(__name__)

SETTINGS, REPLIES = "comparison.json", "replies"
FORMAT_VERSION = 1
_KINDS = {"question": int, "reply": str, "stopped": bool}
_OTHER = "Name another folder with --output, or remove this one"


def check_folder(folder: Path) -> None:
    """Check that a folder is new, empty, or of a comparison, before anything is loaded.

    Args:
        folder: it need not exist.

    Raises:
        SettingError: it is a file, or has other files.
    """
    is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_new and not (folder / SETTINGS).is_file():
        raise SettingError("--output", f"{folder} exists and is from elsewhere", _OTHER)


def open_folder(folder: Path, sides: Sequence[Side], questions: Sequence[Question], max_new_tokens: int) -> None:
    """Create the folder of a comparison, or check that an existing one is of this comparison.

    Args:
        folder: it need not exist.
        sides: all of them.
        questions: in order.
        max_new_tokens: maximum length of a reply.

    Raises:
        SettingError: the folder has other files, or is of other sides, questions or lengths.
        CheckpointError: its record cannot be read.
        OSError: it cannot be written.
    """
    wanted = {
        "format_version": FORMAT_VERSION,
        "sides": {side.name: side.identity() for side in sides},
        "questions": questions_hash(questions),
        "max_new_tokens": max_new_tokens,
    }
    file = folder / SETTINGS
    check_folder(folder)
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(wanted, ensure_ascii=False, indent=1) + "\n")
        return
    recorded = read_json_object(file, _OTHER)
    if different := [key for key in wanted if recorded.get(key) != wanted[key]]:
        found = f"{from_here(folder)} is of another comparison, with other {' and '.join(different)}"
        raise SettingError("--output", found, _OTHER)
    log.info("resuming the comparison in %s", from_here(folder))


def collect_replies(
    folder: Path, sides: Sequence[Side], rows: QuestionRows, questions: Sequence[Question], max_new_tokens: int
) -> dict[str, list[str]]:
    """The replies of all sides, by name. Only those that are not in the folder yet are generated, one side at a time.

    Args:
        folder: of the comparison.
        sides: all of them.
        rows: the questions as prompts.
        questions: in order.
        max_new_tokens: maximum length of a reply.

    Raises:
        KyonError: a model cannot be loaded, or a prompt not be encoded for it.
        KeyboardInterrupt: Ctrl-C; the replies so far are kept.
    """
    (folder / REPLIES).mkdir(exist_ok=True)
    found = {}
    for side in sides:
        journal = Journal(folder / REPLIES / f"{file_name(side.name)}.jsonl", _KINDS)
        done = {row["question"]: row for row in journal.rows}
        missing = [number for number in range(len(questions)) if number not in done]
        if missing:
            _generate(side, journal, missing, rows, questions, max_new_tokens)
            done = {row["question"]: row for row in journal.rows}
        found[side.name] = [_shown(done[number]) for number in range(len(questions))]
    return found


def file_name(name: str) -> str:
    """A name as that of a file: other characters than letters, digits and `=.-` become `_`."""
    return re.sub(r"[^\w=.-]", "_", name).lstrip(".")[:100] or "_"


def _generate(
    side: Side,
    journal: Journal,
    missing: Sequence[int],
    rows: QuestionRows,
    questions: Sequence[Question],
    max_new_tokens: int,
) -> None:
    prompts = _prompts(side, rows, questions)
    model = side.load(max(map(len, prompts)) + max_new_tokens)
    adapter = None if side.is_base else ""
    log.info("%s replies to %d questions", side.name, len(missing))
    for number in tqdm(missing, desc=side.name, leave=False, disable=None):
        reply = _reply(model, prompts[number], max_new_tokens, adapter)
        journal.append({"question": number, "reply": reply.text, "stopped": reply.stopped})


def _reply(model: ChatModel, prompt: list[int], max_new_tokens: int, adapter: str | None) -> ChatReply:
    reply = model.reply(prompt, Sampling(max_new_tokens), adapter=adapter)
    if reply.interrupted:
        raise KeyboardInterrupt
    return reply


def _prompts(side: Side, rows: QuestionRows, questions: Sequence[Question]) -> list[list[int]]:
    """The prompts as this side was trained on them."""
    form = None if side.is_base else side.prompt_format()
    read = rows.read(form.template, form.train_turns) if form else rows.read()
    if [question for question, _ in read] != [*questions]:
        found = f"some questions are left out or shortened in the prompt template of {side.name}"
        raise DataError("questions", found, "Name shorter rows with --questions")
    return [ids for _, ids in read]


def _shown(row: Mapping[str, Any]) -> str:
    return f"{row['reply']}{'' if row['stopped'] else ' […]'}"
