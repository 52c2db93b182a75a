"""What an importer finds in a file, and the text of a file to import."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

from kyon_pl.data.reading.files import must_exist
from kyon_pl.data.reading.text_files import open_binary, open_text, text_encoding
from kyon_pl.data.reading.texts import SURROGATE
from kyon_pl.errors import DataError
from kyon_pl.roles.dialogues import Turn

Kind = Literal["card", "chat_log", "table", "novel"]
Language = Literal["zh", "en"]
Dialogue = list[Turn]

LARGEST_BYTES = 100_000_000
LONGEST_NAME = 60  # characters
_WHOLLY_QUOTED = re.compile(r"「([^「」]*)」|“([^“”]*)”|『([^『』]*)』|\"([^\"]*)\"")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_SPACE = re.compile(r"\s+")


@dataclass
class Found:
    """What an importer found.

    Attributes:
        dialogues: in order; of all speakers.
        notes: lines of the report: what was found, and what was not read.
        names: of the character, if the file says whose it is; the first one is its name.
        system_prompt: of the character; empty if the file has none.
        memories: of the character, besides its dialogues.
        greeting: what the character says first; empty if the file does not say.
    """

    dialogues: list[Dialogue]
    notes: list[str] = field(default_factory=list)
    names: tuple[str, ...] = ()
    system_prompt: str = ""
    memories: list[str] = field(default_factory=list)
    greeting: str = ""

    def speakers(self) -> Counter[str]:
        """The number of turns of each speaker."""
        return Counter(turn.role for dialogue in self.dialogues for turn in dialogue)


def check_size(path: Path) -> None:
    """Check that a file exists, is regular, not empty and not too large to be held in memory.

    Raises:
        MissingFileError: there is no such file.
        DataError: one of the others.
    """
    must_exist(path)
    size = path.stat().st_size
    if size == 0:
        raise DataError(str(path), "it is empty", "Name a card, a chat log, a table or a text.")
    if size > LARGEST_BYTES:
        found = f"{size / 1e6:,.0f} MB; at most {LARGEST_BYTES / 1e6:,.0f} MB are read"
        raise DataError(str(path), found, "Split the file.")


def read_text(path: Path) -> str:
    r"""The text of a file in UTF-8, UTF-16 or GB18030, also compressed; line ends become `\n`.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is empty, too large, not text, or in another encoding.
    """
    check_size(path)
    try:
        with open_binary(path) as file:
            too_large = len(file.read(LARGEST_BYTES + 1)) > LARGEST_BYTES
        if too_large:
            raise DataError(str(path), "too large once decompressed", "Split the file.")
        with open_text(path) as text_file:
            text = text_file.read().removeprefix("\ufeff")
    except UnicodeError:
        encoding = text_encoding(path).removesuffix("-sig").upper()
        raise DataError(str(path), f"no text: it is not {encoding}", "Save it as a text in UTF-8.") from None
    except OSError as error:
        found = f"it cannot be read ({error.strerror or error})"
        raise DataError(str(path), found, "Check its permissions, and that it is complete.") from None
    if "\0" in text:
        raise DataError(str(path), "it holds a NUL, so it is not a text", "Name a card, a chat log, a table or a text.")
    if not text.strip():
        raise DataError(str(path), "there is only space in it", "Name a card, a chat log, a table or a text.")
    return text


def tidy(text: str) -> str:
    r"""A text with `\n` as line end, without space around it and without halves of characters."""
    return SURROGATE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n")).replace("\0", "").strip()


def tidy_name(text: str) -> str:
    """A speaker's name on one line, without colons, which end a name in a turn."""
    return _SPACE.sub(" ", re.sub("[:：]", " ", tidy(text))).strip()[:LONGEST_NAME].strip()


def words_of(text: str) -> str:
    """What is said: without the quotes around the whole, since they belong to the form of a row."""
    text = tidy(text)
    match = _WHOLLY_QUOTED.fullmatch(text)
    return tidy(next(group for group in match.groups() if group is not None)) if match else text


def joined(turns: Iterable[Turn]) -> Dialogue:
    """Turns with those of one speaker in a row joined by a line break, without empty ones."""
    said = (turn for turn in turns if turn.role and turn.text)
    return [Turn(role, "\n".join(turn.text for turn in group)) for role, group in groupby(said, lambda turn: turn.role)]


def language_of(text: str) -> Language:
    """Chinese if a text has more than a few Chinese characters, else English."""
    sample = text[:100_000]
    return "zh" if len(_HAN.findall(sample)) > len(sample) / 50 else "en"


def counted(number: int, noun: str) -> str:
    """A number and its noun: `1 turn`, `1,200 turns`, `2 dialogues`."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"
