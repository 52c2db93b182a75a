"""Importing a chat log: `Name: words`, exports with times beside the names, and DiscordChatExporter's JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kyon_pl.errors import DataError
from kyon_pl.roles.dialogues import Turn
from kyon_pl.roles.importing.found import Dialogue, Found, counted, joined, tidy, tidy_name, words_of

PAUSE_MINUTES = 180
"""A longer pause between two messages starts a new dialogue."""

_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_DATE = (
    r"(?:\d{4}[-/.年]\d{1,2}[-/.月]\d{1,2}日?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{1,2}月\d{1,2}日"
    rf"|\d{{1,2}}[- ](?:{_MONTHS})[a-z]*[- ,]+\d{{2,4}}|(?:{_MONTHS})[a-z]* \d{{1,2}},? \d{{4}}"
    r"|Today|Yesterday|今天|昨天|(?:星期|周)[一二三四五六日天])"
)
_CLOCK = r"(?:(?:凌晨|早上|上午|中午|下午|晚上)\s*)?\d{1,2}:\d{2}(?::\d{2})?(?:\s?[AaPp]\.?[Mm]\.?)?"
_WHEN = rf"(?P<when>(?:{_DATE}(?:,| at|T)?\s*)?{_CLOCK})"
_NAME = r"(?P<name>[^\s:：\[\]][^:：\n]{0,58}?)"
_SHORT_NAME = r"(?P<name>[^\s:：，。！？,!?;；「」“”\"/\\<>|][^:：，。！？,!?;；「」“”\"/\\<>|]{0,29}?)"
_TIMED = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\[?{_WHEN}\]?\s*(?:[-–—]\s*)?{_NAME}\s*[:：]\s*(?P<words>.*)",  # [time] name: words
        rf"\[{_WHEN}\]\s*{_NAME}",  # DiscordChatExporter's text
        rf"{_WHEN}\s+{_NAME}",  # QQ
        rf"{_NAME}(?:\s*[—–]\s*|\s+-\s+|\s+|\s*[:：]\s+)[\[(（]?{_WHEN}[\])）]?",  # WeChat, Discord as it is copied
    )
)
_PLAIN = re.compile(rf"{_SHORT_NAME}\s*[:：](?!//)\s*(?P<words>.*)")
_TIME_ALONE = re.compile(rf"[\[—–\- ]*{_WHEN}[\]—–\- ]*")
_NUMBER = re.compile(r"\s*(?:\(\d{5,}\)|<[^<>\s]+@[^<>\s]+>|#\d{4})$")  # QQ's number, an address, Discord's number
_PLACEHOLDER = re.compile(
    r"\[[^\[\]]{1,20}\]|【[^【】]{1,20}】|<[^<>]{0,20}(?:omitted|省略)>|.{0,40}撤回了一条消息"
    r"|This message was deleted\.?"
)
_SPOKEN = ("Default", "Reply")  # types of Discord's messages
_CLOCK_PARTS = re.compile(r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::\d{2})?\s?(?P<half>[AaPp])?")


@dataclass
class Message:
    """A message of a log.

    Attributes:
        name: who wrote it.
        lines: what it says.
        when: its time as it is written; empty if it has none.
        blank_lines: number of blank lines before it.
    """

    name: str
    lines: list[str]
    when: str = ""
    blank_lines: int = 0


def log_share(text: str) -> float:
    """The share of the lines with text that start a message, from 0 to 1, of the first 2,000 lines."""
    lines = [line.strip() for line in text.splitlines()[:2000] if line.strip()]
    timed = sum(_timed(line) is not None for line in lines)
    plain = sum(_PLAIN.fullmatch(line) is not None for line in lines)
    return max(plain, 2 * timed) / max(len(lines), 1)  # a time line has its words on the next one


def read_chat_log(path: Path, text: str) -> Found:
    """Read a chat log. Messages of one speaker in a row are joined.

    A dialogue ends at a pause of `PAUSE_MINUTES`; without times, at a blank line, or where most messages have blank
    lines around them, at two.

    Args:
        path: for messages.
        text: of the file.

    Raises:
        DataError: there is no message in it.
    """
    lines = text.splitlines()
    timed = sum(_timed(line.strip()) is not None for line in lines)
    is_timed = timed >= 2 and 4 * timed >= sum(_PLAIN.fullmatch(line.strip()) is not None for line in lines)
    messages, unread = _timed_messages(lines) if is_timed else _plain_messages(lines)
    if not messages:
        fix = "Write each message as `Name: words`, or choose another --kind."
        raise DataError(str(path), "no message of a chat log is found", fix)
    notes = [
        f"a chat log with times, {counted(len(messages), 'message')}"
        if is_timed
        else f"a chat log, {counted(len(messages), 'message')}"
    ]
    notes += [f"not read: {counted(unread, 'line')} before the first message"] if unread else []
    return _found(messages, notes)


def is_discord_export(value: object) -> bool:
    """Whether a JSON value is from DiscordChatExporter."""
    messages = value.get("messages") if isinstance(value, dict) else None
    return isinstance(messages, list) and any(isinstance(each, dict) and "author" in each for each in messages)


def read_discord_export(path: Path, value: Any) -> Found:
    """Read DiscordChatExporter's JSON. Messages that are no text of a person, such as joining, are counted.

    Raises:
        DataError: no message can be read.
    """
    messages, skipped = [], 0
    for each in value["messages"]:
        author = each.get("author") if isinstance(each, dict) else None
        name = author.get("nickname") or author.get("name") if isinstance(author, dict) else None
        if (
            not isinstance(name, str)
            or not isinstance(each.get("content"), str)
            or each.get("type", "Default") not in ("Default", "Reply")
            or not each["content"].strip()
        ):
            skipped += 1
        else:
            messages.append(Message(tidy_name(name), [each["content"]], str(each.get("timestamp") or "")))
    if not messages:
        raise DataError(str(path), f"none of {counted(skipped, 'message')} has text", "Export it again.")
    notes = [f"a Discord export, {counted(len(messages), 'message')}"]
    notes += [f"not read: {counted(skipped, 'message')} without text, or of the system"] if skipped else []
    return _found(messages, notes)


def dialogues_of(messages: Sequence[Message]) -> list[Dialogue]:
    """Messages as dialogues, see `read_chat_log`."""
    blocks = 1 + sum(message.blank_lines > 0 for message in messages[1:])
    has_times = any(message.when for message in messages)
    blank_lines = 1 if len(messages) >= 2 * blocks else 2  # that end a dialogue
    dialogues: list[list[Turn]] = [[]]
    last: float | None = None
    for message in messages:
        now = _minutes(message.when)
        if now is not None and last is not None and not _has_date(message.when):
            now += 1440 * ((last - now) // 1440 + 1) if now < last else 0  # a clock alone, after midnight
        pause = now is not None and last is not None and not 0 <= now - last <= PAUSE_MINUTES
        if pause or (not has_times and message.blank_lines >= blank_lines):
            dialogues.append([])
        last = last if now is None else now
        dialogues[-1].append(Turn(message.name, words_of("\n".join(message.lines))))
    return [dialogue for turns in dialogues if (dialogue := joined(turns))]


def _found(messages: list[Message], notes: list[str]) -> Found:
    said = [m for m in messages if (text := tidy("\n".join(m.lines))) and not _PLACEHOLDER.fullmatch(text)]
    if len(said) < len(messages):
        notes.append(f"not read: {counted(len(messages) - len(said), 'message')} without words, such as pictures")
    return Found(dialogues_of(said), notes)


def _timed(line: str) -> re.Match[str] | None:
    return next((match for pattern in _TIMED if (match := pattern.fullmatch(line))), None)


def _timed_messages(lines: Sequence[str]) -> tuple[list[Message], int]:
    def start(line: str) -> Message | None:
        if not (match := _timed(line)):
            return None
        words = match.groupdict().get("words")
        name = _NUMBER.sub("", match["name"].strip(" -–—"))
        return Message(tidy_name(name), [words] if words else [], match["when"])

    return _messages(lines, start)


def _plain_messages(lines: Sequence[str]) -> tuple[list[Message], int]:
    def start(line: str) -> Message | None:
        match = _PLAIN.fullmatch(line)
        return Message(tidy_name(match["name"]), [match["words"]]) if match else None

    return _messages(lines, start)


def _messages(lines: Sequence[str], start: Callable[[str], Message | None]) -> tuple[list[Message], int]:
    messages: list[Message] = []
    unread = blank = 0
    for line in map(str.strip, lines):
        if message := start(line):
            message.blank_lines, blank = blank, 0
            messages.append(message)
        elif not line or _TIME_ALONE.fullmatch(line):
            blank += 1
        elif messages:
            messages[-1].lines += [""] * blank + [line]
            blank = 0
        else:
            unread += 1
    return messages, unread


def _has_date(when: str) -> bool:
    return re.match(_DATE, when) is not None or "T" in when


def _minutes(when: str) -> float | None:
    """A time in minutes, for differences; None if there is none. Which of two numbers is the month is guessed."""
    try:
        return datetime.fromisoformat(when.replace("/", "-")).timestamp() / 60
    except (ValueError, OverflowError, OSError):
        pass
    clock = _CLOCK_PARTS.search(when)
    if not clock:
        return None
    hour = int(clock["hour"]) % (12 if clock["half"] else 24)
    afternoon = (clock["half"] or "") in ("P", "p") or (re.search("下午|晚上", when) is not None and hour < 12)
    day = _day(when[: clock.start()])
    return day * 1440 + (hour + 12 * afternoon) * 60 + int(clock["minute"])


def _day(date: str) -> int:
    """The number of a day; of an unknown year, of an arbitrary one."""
    month_name = re.search(_MONTHS, date)
    numbers = [int(number) for number in re.findall(r"\d+", date)]
    if month_name:
        numbers.insert(0, _MONTHS.split("|").index(month_name[0]) + 1)
    if len(numbers) < 2:
        return 0
    year = next((number for number in numbers if number > 31), numbers[2] if len(numbers) > 2 else 2000)
    rest = [number for number in numbers if number != year] or numbers
    month, day = (*rest, 1)[:2]
    if month > 12:
        month, day = day, month
    return year * 372 + month * 31 + day
