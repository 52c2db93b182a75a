"""Importing a table with a column of speakers and a column of what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from kyon_pl.data.reading.files import guesses, has_reader, read_rows
from kyon_pl.data.reading.text_files import Unreadable
from kyon_pl.errors import DataError
from kyon_pl.roles.importing.chat_logs import Message, dialogues_of
from kyon_pl.roles.importing.found import Dialogue, Found, check_size, counted, tidy_name, words_of

SPEAKERS = (
    *("speaker", "role", "name", "character", "who", "from", "author", "sender", "actor", "person", "nickname"),
    *("说话人", "说话者", "角色", "人物", "姓名", "名字", "发言人", "发送者", "发送人", "昵称", "谁"),
)
TEXTS = (
    *("text", "words", "line", "content", "message", "mes", "value", "dialogue", "dialog", "quote", "utterance", "msg"),
    *("台词", "内容", "对白", "对话", "话", "文本", "消息", "说的话", "语句"),
)
SCENES = (
    *("scene", "conversation", "chapter", "episode", "dialogue", "dialog"),
    *("场景", "场次", "场", "章节", "集", "对话"),
)
TIMES = ("time", "date", "timestamp", "datetime", "send_date", "时间", "日期")


def read_speaker_table(path: Path) -> Found:
    """Read a table: its columns are recognized by their names, or are the first two if there are two.

    A dialogue ends where the column of the scene changes, at a pause in the column of times, or at an empty row.

    Args:
        path: a file that `build-data` reads rows from, such as CSV, Excel or JSON.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is broken, or it is not clear which columns these are.
    """
    check_size(path)
    if not has_reader(path):
        found = f"no table: files that end in {path.suffix or '(nothing)'} are not read as tables"
        raise DataError(str(path), found, "Rename the file (.csv, .tsv, .xlsx, .json), or choose another --kind.")
    values = [value for _, value in read_rows(path)]
    rows = [{str(key): text for key, text in value.items()} for value in values if isinstance(value, dict)]
    columns = list(dict.fromkeys(chain.from_iterable(rows[:1000])))
    if not rows:
        raise DataError(str(path), "a table without rows", "Give it a column of speakers and a column of texts.")
    speaker, text, headless = _columns(path, columns, rows)
    if headless:
        rows.insert(0, {name: name for name in columns})
    used = {speaker, text}
    scene = next((name for name in columns if name not in used and name.strip().lower() in SCENES), None)
    time = next((name for name in columns if name not in used and name.strip().lower() in TIMES), None)
    dialogues, skipped = _dialogues(rows, speaker, text, scene, time)
    bad = sum(isinstance(value, Unreadable) or not isinstance(value, dict) for value in values)
    first = "the first two columns" if headless or speaker.strip().lower() not in SPEAKERS else f"{speaker} and {text}"
    notes = [f"a table, {counted(len(rows), 'row')}; speaker and words: {first}", *guesses(path)]
    notes += [f"a new dialogue at each {scene}"] if scene else []
    notes += [f"rows not read, without a speaker or words: {skipped:,}"] if skipped else []
    notes += [f"rows not read, since they are broken: {bad:,}"] if bad else []
    unread = [name for name in columns if name not in {*used, scene, time} and name.strip()]
    notes += [f"columns not read: {', '.join(unread)}"] if unread else []
    return Found(dialogues, notes)


def _columns(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> tuple[str, str, bool]:
    """The column of speakers, the column of texts, and whether the first row is no header."""
    known = {name.strip().lower(): name for name in columns}
    speaker = next((known[name] for name in SPEAKERS if name in known), None)
    text = next((known[name] for name in TEXTS if name in known and known[name] != speaker), None)
    if speaker and text:
        return speaker, text, False
    if len(columns) == 2:
        first, second = columns
        return first, second, any(row.get(first) == first for row in rows)
    found = f"no column of speakers and of texts among {', '.join(map(repr, columns))}"
    raise DataError(str(path), found, "Call them 'speaker' and 'text', or leave only these two.")


def _dialogues(
    rows: Sequence[Mapping[str, Any]], speaker: str, text: str, scene: str | None, time: str | None
) -> tuple[list[Dialogue], int]:
    """The dialogues, and the number of rows without a speaker or words that are not empty."""
    parts: list[list[Message]] = [[]]
    skipped, here = 0, object()
    for row in rows:
        name, words = (cell if isinstance(cell := row.get(column), str) else "" for column in (speaker, text))
        if not any(str(cell).strip() for cell in row.values() if cell is not None):
            parts.append([])
            continue
        if scene is not None and row.get(scene) != here:
            here = row.get(scene)
            parts.append([])
        if tidy_name(name) and words_of(words):
            when = str(row.get(time) or "") if time else ""
            parts[-1].append(Message(tidy_name(name), [words], when))
        else:
            skipped += 1
    return [dialogue for part in parts if part for dialogue in dialogues_of(part)], skipped
