"""From dialogues to rows: a row for each turn of the role, under the original's names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from kyon_pl.data.reading.files import NumberedRows, Unreadable, must_exist, read_rows

Mode = Literal["fixed", "original"]
ORIGINAL_SOURCE = "story-synthesised"
_NOT_OF_THE_ROLE = "no turn of the role in the dialogue"


class DialogueRow(TypedDict):
    """A turn of the role and what came before it.

    Attributes:
        query: the turn to answer, `name:text`.
        answer: the turn of the role, `name:text`.
        chat_history: the turns before the query, oldest first.
        embedding: the query's vector; empty if it has none.
        source: what the dialogue says of where it comes from.
    """

    query: str
    answer: str
    chat_history: list[str]
    embedding: list[float]
    source: str


class Turn(NamedTuple):
    """What somebody says."""

    role: str
    text: str


@dataclass(frozen=True)
class Dropped:
    """Stands in the place of a row that could not be made.

    Attributes:
        reason: the kind, then `: ` and details.
    """

    reason: str


@dataclass(frozen=True)
class Made:
    """A row, or why there is none.

    Attributes:
        row: either.
        file: where it comes from.
        line: of the file, from 1; of Parquet and JSON, the row.
        number: of the object in the file, from 1; several rows share a dialogue, and several objects may share a line.
        of_dialogue: whether that object is a dialogue, and not a row by itself.
    """

    row: DialogueRow | Dropped
    file: Path
    line: int
    number: int
    of_dialogue: bool

    @property
    def place(self) -> str:
        """File and number, for a person to find it."""
        return f"{self.file}, object {self.number}"


def rows_of_dialogue(
    turns: Sequence[Turn], aliases: Sequence[str], source: str = ""
) -> Iterator[DialogueRow | Dropped]:
    """A row for each turn of the role that answers somebody else.

    Args:
        turns: of one dialogue.
        aliases: a name that begins with one of them is the role's.
        source: for the rows.
    """
    role = [turn.role.startswith(tuple(aliases)) for turn in turns]
    said = [f"{turn.role}:{turn.text}" if turn.role else turn.text for turn in turns]
    if not any(role):
        yield Dropped(_NOT_OF_THE_ROLE)
    for i in (i for i, is_role in enumerate(role) if is_role):
        if i == 0:
            yield Dropped("a turn that opens the dialogue and answers nothing")
        elif role[i - 1]:
            yield Dropped("a turn right after another of the role")
        else:
            yield DialogueRow(
                query=said[i - 1], answer=said[i], chat_history=said[: i - 1], embedding=[], source=source
            )


def original_rows_of_dialogue(turns: Sequence[Turn], aliases: Sequence[str]) -> Iterator[DialogueRow | Dropped]:
    """The same by the original's rule.

    The turn before the query is lost. A turn that opens the dialogue answers its last turn, with all but the last two
    as history. Aliases are gone through one by one, so a name that begins with two of them is taken twice.

    Args:
        turns: of one dialogue.
        aliases: a name that begins with one of them is the role's.
    """
    said = [f"{turn.role}:{turn.text}" for turn in turns]
    if not any(turn.role.startswith(tuple(aliases)) for turn in turns):
        yield Dropped(_NOT_OF_THE_ROLE)
    for alias in aliases:
        places = [i for i, turn in enumerate(turns) if turn.role.startswith(alias)]
        for i in places:
            if i - 1 in places:
                yield Dropped("a turn right after another of the role")
                continue
            history = [] if i == 1 else said[: i - 2]  # where i is 0, places -1 and -2: from the end
            yield DialogueRow(
                query=said[i - 1], answer=said[i], chat_history=history, embedding=[], source=ORIGINAL_SOURCE
            )


def read_dialogue_rows(path: Path, aliases: Sequence[str], mode: Mode = "fixed") -> Iterator[Made]:
    """All rows of a file of dialogues, or of rows that were made from dialogues before.

    Args:
        path: objects with `dialogue`, a list of turns with `role` and `text`; or with `query` and `answer`.
        aliases: of the role.
        mode: by which rule; `original` also reads a file of JSON lines as the original did, see `original_values`.

    Raises:
        MissingFileError: there is no such file.
        DataError: the file as a whole cannot be read.
    """
    as_original = mode == "original" and path.suffix.lower() in (".jsonl", ".ndjson")
    values = original_values(path) if as_original else read_rows(path)
    for number, (line, value) in enumerate(values, start=1):
        of_dialogue = isinstance(value, dict) and "dialogue" in value
        for row in _rows_of(value, aliases, mode):
            yield Made(row, path, line, number, of_dialogue)


def speakers_in(path: Path) -> list[str]:
    """The names in a file of dialogues, those with the most turns first.

    Raises:
        MissingFileError: there is no such file.
        DataError: the file as a whole cannot be read.
    """
    dialogues = (value.get("dialogue") for _, value in read_rows(path) if isinstance(value, dict))
    turns = (turn for turns in map(_turns, dialogues) if not isinstance(turns, Dropped) for turn in turns)
    return [name for name, _ in Counter(turn.role for turn in turns).most_common() if name]


def original_values(path: Path) -> NumberedRows:
    """The values of a file of JSON lines with their lines, as the original took them from it.

    A line that is not JSON was cut behind each `}` before it was read again: so the rows of a file that has them all
    on one line were won, and those with a `}` in their text were lost.

    Raises:
        MissingFileError: there is no such file.
    """
    must_exist(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            value = _value(line)
            pieces = line.replace(b"}", b"}\n").split(b"\n") if isinstance(value, Unreadable) else []
            values = map(_value, filter(bytes.strip, pieces)) if pieces else [value]
            yield from ((number, value) for value in values)


def _value(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # broken JSON, or not UTF-8
        return Unreadable("broken JSON")


def _rows_of(value: Any, aliases: Sequence[str], mode: Mode) -> Iterator[DialogueRow | Dropped]:
    if isinstance(value, Unreadable):
        yield Dropped(value.problem)
    elif not isinstance(value, dict) or not ("dialogue" in value or {"query", "answer"} <= value.keys()):
        yield Dropped("no object with 'dialogue', or with 'query' and 'answer'")
    elif "dialogue" not in value:
        yield _ready_row(value)
    elif isinstance(turns := _turns(value["dialogue"]), Dropped):
        yield turns
    elif mode == "original":
        yield from original_rows_of_dialogue(turns, aliases)
    else:
        yield from rows_of_dialogue(turns, aliases, str(value.get("source") or ""))


def _turns(dialogue: Any) -> list[Turn] | Dropped:
    if not isinstance(dialogue, list) or not dialogue:
        return Dropped("no list of turns in 'dialogue'")
    for turn in dialogue:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str) or not isinstance(turn.get("text"), str):
            return Dropped("a turn without 'role' and 'text'")
    return [Turn(turn["role"], turn["text"]) for turn in dialogue]


def _ready_row(value: Mapping[str, Any]) -> DialogueRow | Dropped:
    history, embedding = value.get("chat_history") or [], value.get("embedding") or []
    if not isinstance(value["query"], str) or not isinstance(value["answer"], str):
        return Dropped("no text in 'query' or 'answer'")
    if not isinstance(history, list) or not all(isinstance(turn, str) for turn in history):
        return Dropped("no list of texts in 'chat_history'")
    if not isinstance(embedding, list) or not {*map(type, embedding)} <= {int, float}:
        return Dropped("no list of numbers in 'embedding'")
    return DialogueRow(
        query=value["query"],
        answer=value["answer"],
        chat_history=history,
        embedding=embedding,
        source=str(value.get("source") or ""),
    )
