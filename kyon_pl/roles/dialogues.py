"""Makes a row for each turn of the role in a dialogue, by our rule or by the original's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from kyon_pl.data.reading.files import must_exist, read_rows
from kyon_pl.data.reading.text_files import NumberedRows, Unreadable
from kyon_pl.runs.prompt_format import Mode

ORIGINAL_SOURCE = "story-synthesised"
_NO_TURN = "no turn of the role in the dialogue"
_CONSECUTIVE_TURN = "a turn directly after another turn of the role"


class DialogueRow(TypedDict):
    """A turn of the role and the turns before it.

    Attributes:
        query: the turn to answer, `name:text`.
        answer: the turn of the role, `name:text`.
        chat_history: the turns before the query, oldest first.
        embedding: the query's vector; empty if it has none.
        source: the dialogue's `source`.
    """

    query: str
    answer: str
    chat_history: list[str]
    embedding: list[float]
    source: str


class Turn(NamedTuple):
    """A turn of a dialogue."""

    role: str
    text: str


@dataclass(frozen=True)
class Dropped:
    """Takes the place of a row that cannot be made.

    Attributes:
        reason: the kind, then `: ` and details.
    """

    reason: str


@dataclass(frozen=True)
class ReadRow:
    """A row, or the reason why there is none, and its position in the input.

    Attributes:
        row: the row or the reason.
        file: the file that it was read from.
        line: line in the file, from 1; of Parquet and JSON, the number of the row.
        number: number of the object in the file, from 1. The rows of a dialogue share it; a line can hold several.
        of_dialogue: whether the object is a dialogue, not a ready-made row.
    """

    row: DialogueRow | Dropped
    file: Path
    line: int
    number: int
    of_dialogue: bool

    @property
    def place(self) -> str:
        """File and number, for messages."""
        return f"{self.file}, object {self.number}"


def rows_of_dialogue(
    turns: Sequence[Turn], aliases: Sequence[str], source: str = ""
) -> Iterator[DialogueRow | Dropped]:
    """A row for each turn of the role that follows another speaker's turn.

    Args:
        turns: of one dialogue.
        aliases: a name that starts with one of them is the role's.
        source: the `source` of the rows.
    """
    is_role = [turn.role.startswith(tuple(aliases)) for turn in turns]
    texts = [f"{turn.role}:{turn.text}" if turn.role else turn.text for turn in turns]
    if not any(is_role):
        yield Dropped(_NO_TURN)
    for i in (i for i, of_role in enumerate(is_role) if of_role):
        if i == 0:
            yield Dropped("a turn that opens the dialogue, so it answers nothing")
        elif is_role[i - 1]:
            yield Dropped(_CONSECUTIVE_TURN)
        else:
            yield DialogueRow(
                query=texts[i - 1], answer=texts[i], chat_history=texts[: i - 1], embedding=[], source=source
            )


def original_rows_of_dialogue(turns: Sequence[Turn], aliases: Sequence[str]) -> Iterator[DialogueRow | Dropped]:
    """A row for each turn of the role, by the original's rule.

    The turn before the query is lost. A turn that opens the dialogue is paired with the last turn, and its history is
    all but the last two. The aliases are processed one by one, so a name that starts with two of them is used twice.

    Args:
        turns: of one dialogue.
        aliases: a name that starts with one of them is the role's.
    """
    texts = [f"{turn.role}:{turn.text}" for turn in turns]
    if not any(turn.role.startswith(tuple(aliases)) for turn in turns):
        yield Dropped(_NO_TURN)
    for alias in aliases:
        indices = [i for i, turn in enumerate(turns) if turn.role.startswith(alias)]
        for i in indices:
            if i - 1 in indices:
                yield Dropped(_CONSECUTIVE_TURN)
                continue
            history = [] if i == 1 else texts[: i - 2]  # for i = 0, the indices -1 and -2 count from the end
            yield DialogueRow(
                query=texts[i - 1], answer=texts[i], chat_history=history, embedding=[], source=ORIGINAL_SOURCE
            )


def read_dialogue_rows(path: Path, aliases: Sequence[str], mode: Mode = "fixed") -> Iterator[ReadRow]:
    """All rows of a file of dialogues, or of rows that were made from dialogues before.

    Args:
        path: file of objects with `dialogue`, a list of turns with `role` and `text`; or with `query` and `answer`.
        aliases: of the role.
        mode: the rule; `original` also reads JSON lines as the original did, see `original_values`.

    Raises:
        MissingFileError: there is no such file.
        DataError: the file as a whole cannot be read.
    """
    as_original = mode == "original" and path.suffix.lower() in (".jsonl", ".ndjson")
    values = original_values(path) if as_original else read_rows(path)
    for number, (line, value) in enumerate(values, start=1):
        of_dialogue = isinstance(value, dict) and "dialogue" in value
        for row in _rows_of(value, aliases, mode):
            yield ReadRow(row, path, line, number, of_dialogue)


def speakers_in(path: Path) -> list[str]:
    """The speakers in a file of dialogues, by number of turns, largest first.

    Raises:
        MissingFileError: there is no such file.
        DataError: the file as a whole cannot be read.
    """
    dialogues = (value.get("dialogue") for _, value in read_rows(path) if isinstance(value, dict))
    turns = (turn for turns in map(_turns, dialogues) if not isinstance(turns, Dropped) for turn in turns)
    return [name for name, _ in Counter(turn.role for turn in turns).most_common() if name]


def original_values(path: Path) -> NumberedRows:
    """The values of a file of JSON lines with their line numbers, read as by the original.

    A line that is not JSON is split after each `}`, and the pieces are read. This reads rows that share a line, and
    loses those with a `}` in their text.

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
    except (ValueError, RecursionError):  # broken JSON, not UTF-8, or nested too deeply
        return Unreadable("broken JSON")


def _rows_of(value: Any, aliases: Sequence[str], mode: Mode) -> Iterator[DialogueRow | Dropped]:
    if isinstance(value, Unreadable):
        yield Dropped(value.problem)
    elif not isinstance(value, dict) or not ("dialogue" in value or {"query", "answer"} <= value.keys()):
        yield Dropped("no object with 'dialogue', or with 'query' and 'answer'")
    elif "dialogue" not in value:
        yield _ready_made_row(value)
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


def _ready_made_row(value: Mapping[str, Any]) -> DialogueRow | Dropped:
    query, answer, source = value["query"], value["answer"], str(value.get("source") or "")
    history, embedding = value.get("chat_history") or [], value.get("embedding") or []
    if not isinstance(query, str) or not isinstance(answer, str):
        return Dropped("no text in 'query' or 'answer'")
    if not isinstance(history, list) or not all(isinstance(turn, str) for turn in history):
        return Dropped("no list of texts in 'chat_history'")
    if not isinstance(embedding, list) or not {*map(type, embedding)} <= {int, float}:
        return Dropped("no list of numbers in 'embedding'")
    return DialogueRow(query=query, answer=answer, chat_history=history, embedding=embedding, source=source)
