"""The language of the terminal: public messages are written in English in the code, and shown in Chinese there.

A message is translated when it is shown, not where it is raised: the finished text is looked up in the catalogue, whose
entries are the texts and f-strings of the code, an f-string as "{0} is not a share". What stands in its fields is
translated in turn, since it may be a message itself: a reason, a kind, a list. Files, JSON and `run.log` stay English.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import unicodedata
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path

from kyon_pl.errors import KyonError

VARIABLE = "KYON_PL_LANG"
LANGUAGES = ("zh", "en")
CATALOGUE = Path(__file__).parent / "zh.po"
FIELD = re.compile(r"\{(\d+)\}")
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")
# gettext's format as docs/messages.py writes it: each text in one line, with the escapes of JSON
_ENTRY = re.compile(r'^msgid (".+")\nmsgstr (".+")$', re.MULTILINE)
_MARKS = {". ": "。", "; ": "；", ": ": "：", ", ": "，", " × ": " × "}  # between the messages that a text is made of
# messages within messages, and characters; what is beyond, such as the end of a long list, stays as it is
_DEEPEST, _LONGEST = 6, 2000
_LATIN = re.compile("[A-Za-z]")
_QUOTED = re.compile(r"""(['"])[^'"]*\1""")  # a value from a file or the command line
_STOPS = ("。", "？", "！", ".", "?", "!")
_CLOSING = "，。；：、？！）”"  # no line begins with these
_APPENDED = (" ", ",", ";", ".")  # a message that begins so is appended to another
# what their fields hold was typed, or written by a model
_OF_DATA = frozenset(("asked   %s", "  base  %s", "  tuned %s", "(removed: {0})", "(system prompt: {0})"))


def language(environment: Mapping[str, str]) -> str:
    """The language of the terminal, `zh` or `en`: that of `KYON_PL_LANG`, or of the first variable of the locale.

    Args:
        environment: of this process.
    """
    chosen = next((value for name in (VARIABLE, *_LOCALE) if (value := environment.get(name))), "")
    return "zh" if chosen.lower().startswith("zh") else "en"


def in_chinese() -> bool:
    """Whether the terminal of this process is Chinese."""
    return language(os.environ) == "zh"


def localized(message: str | KyonError) -> str:
    """A message in the language of the terminal; a text that the catalogue does not have stays as it is.

    Args:
        message: an error, or a text with its values.
    """
    if not in_chinese():
        return str(message)
    if isinstance(message, KyonError):
        where, found, fix = (_translated(part) for part in (message.where, message.found.rstrip("."), message.fix))
        return f"{where}：{found}。{fix}{'' if fix.endswith(_STOPS) else '。'}"
    return _translated(message)


def localized_record(record: logging.LogRecord) -> logging.LogRecord:
    """A log record whose format and arguments are in the language of the terminal.

    Args:
        record: in English; it stays as it is, for the handlers of files.
    """
    if not in_chinese():
        return record
    shown = copy.copy(record)
    if not record.args:
        shown.msg = localized(str(record.msg))
    elif isinstance(record.args, tuple):
        shown.msg = _entries().get(record.msg, record.msg)
    if isinstance(record.args, tuple) and record.msg not in _OF_DATA:
        shown.args = tuple(localized(arg) if isinstance(arg, str | KyonError) else arg for arg in record.args)
    return shown


def read_catalogue(file: Path) -> dict[str, str]:
    """The translations of a catalogue by message; those that are empty are left out.

    Args:
        file: in gettext's format, each text in one line.
    """
    entries = _ENTRY.findall(file.read_text(encoding="utf-8"))
    texts = json.loads(f"[{','.join(text for entry in entries for text in entry)}]")
    return dict(zip(texts[::2], texts[1::2], strict=True))


@cache
def _entries() -> dict[str, str]:
    return read_catalogue(CATALOGUE)


@cache
def _templates() -> list[tuple[str, str]]:
    """Messages with fields, those with the most text of their own first; each with its longest piece of text."""
    found = []
    for message in _entries():
        pieces = FIELD.split(message)[::2]
        if len(pieces) > 1 or message.startswith(_APPENDED):
            found.append((sum(map(len, pieces)), max(pieces, key=len), message))
    return [(piece, message) for _, piece, message in sorted(found, key=lambda each: -each[0])]


@cache
def _pattern(message: str) -> re.Pattern[str]:
    pieces = [*([""] if message.startswith(_APPENDED) else []), *FIELD.split(message)[::2]]
    return re.compile("(.*?)".join(map(re.escape, pieces)), re.DOTALL)


@lru_cache(maxsize=4096)
def _translated(text: str, depth: int = 0) -> str:
    """The Chinese of a text: of the ways to read it as messages, that which leaves the least English.

    Of several, that whose fields hold the fewest marks: a field of a message can match the message behind it.
    """
    if depth > _DEEPEST or len(text) > _LONGEST or _QUOTED.fullmatch(text):
        return text
    if text.endswith(".") and not text.endswith(".."):
        body = _translated(text[:-1], depth)
        return text if body == text[:-1] else f"{body}。"
    if chinese := _entries().get(text):
        return chinese
    readings = [
        (_filled(message, match.groups(), depth + 1), _marks_in(match.groups()))
        for piece, message in _templates()
        if piece in text and (match := _pattern(message).fullmatch(text))
    ]
    readings += [_in_parts(text, mark, depth + 1) for mark in _MARKS if mark in text]
    return min(readings, key=lambda reading: (len(_LATIN.findall(reading[0])), reading[1]), default=(text, 0))[0]


def _marks_in(values: tuple[str, ...]) -> int:
    return sum(value.count(mark) for value in values for mark in _MARKS)


def _in_parts(text: str, mark: str, depth: int) -> tuple[str, int]:
    """The Chinese of what stands before and behind a mark; and 0 if both are messages, else more than any reading."""
    parts = text.split(mark, 1)
    chinese = [_translated(part, depth) for part in parts]
    if chinese == parts:
        return text, len(text)
    return _MARKS[mark].join(chinese), len(text) if chinese[0] == parts[0] or chinese[1] == parts[1] else 0


def _filled(message: str, values: tuple[str, ...], depth: int) -> str:
    """The Chinese of a message with fields, with their values in Chinese too."""
    shown = values if message in _OF_DATA else [_translated(value, depth) for value in values]
    appended = shown[0] if message.startswith(_APPENDED) else ""
    fields = shown[1:] if message.startswith(_APPENDED) else shown
    return appended + FIELD.sub(lambda field: fields[int(field[1])], _entries()[message])


def width(text: str) -> int:
    """The columns of the terminal that a text takes: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def padded(text: str, columns: int) -> str:
    """A text with blanks up to a width, in columns of the terminal."""
    return text + " " * (columns - width(text))


def wrapped(text: str, columns: int) -> list[str]:
    """A Chinese text in lines: they break before any character, but not within a Latin word.

    Args:
        text: without line ends.
        columns: of the terminal, which a line takes at most, unless a word is longer.
    """
    lines = [""]
    for piece in re.findall(r"[!-~]+ *|.", text):
        if width(lines[-1] + piece.rstrip()) > columns and piece not in _CLOSING:
            lines.append("")
        lines[-1] += piece if lines[-1] else piece.lstrip()
    return [line.rstrip() for line in lines]
