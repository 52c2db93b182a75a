"""Reading JSON: one row per line, an array, objects one after the other, or an object that holds the rows."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kyon_pl.data.reading.forms import FORM_COLUMNS
from kyon_pl.data.reading.text_files import NumberedRows, Unreadable, file_format, open_binary, open_text, text_encoding
from kyon_pl.errors import DataError

_SPACE = re.compile(r"\s*")
_INVALID_NUMBER_OR_DEPTH = (ValueError, RecursionError)  # a number of 5,000 digits, 100,000 brackets
_PIECE_CHARACTERS = 1 << 16
_LINE_CHARACTERS = 1 << 22  # a longer first line is an array, or an object that holds the rows
_LONGEST_WORD = 12  # `-Infinity`, `\ud83d\ude00`: an error closer to the end of a piece can be the cut
_TURN_KEYS = {"role", "from"}
_ROW_COLUMNS = FORM_COLUMNS | {"context", "target"}


def json_rows(path: Path) -> NumberedRows:
    """Yield the rows of a JSON file of any layout, whatever its name is.

    A file whose first or second line is a JSON value of its own has one row per line, and a broken line is one bad row.
    Anything else is read as a whole: an array of rows; objects one after the other; or an object in which one key
    holds the list of rows. Of these, only the last is held in memory.

    Args:
        path: the file.

    Raises:
        DataError: the JSON of a file that is read as a whole is broken, or it is not in the detected encoding.
    """
    encoding = text_encoding(path)
    try:
        yield from json_lines(path, encoding) if _has_a_row_per_line(path) else _whole_file(path)
    except UnicodeDecodeError as error:
        found = f"not {encoding.removesuffix('-sig').upper()}: {error.reason} at byte {error.start + 1}"
        raise DataError(str(path), found, "Save it as UTF-8.") from None


def json_lines(path: Path, encoding: str = "utf-8-sig") -> NumberedRows:
    """Yield the values of a file of JSON lines, of any type; `Unreadable` for a line without one.

    Args:
        path: the file.
        encoding: its encoding.
    """
    line_encoding = "utf-8" if encoding[:4] == "utf-" else encoding
    with open_binary(path) as file:
        lines = _recoded(file, encoding) if encoding[:6] in ("utf-16", "utf-32") else file
        for number, line in enumerate(lines, start=1):
            if line.strip():
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                for value in _line_values(line, line_encoding):
                    yield number, value


def _recoded(file: Any, encoding: str) -> Iterator[bytes]:
    for line in io.TextIOWrapper(file, encoding=encoding, newline="\n"):
        yield line.encode("utf-8", "surrogatepass")


def _line_values(line: bytes, encoding: str) -> Iterator[Any]:
    """Yield the JSON values of a line: usually one; several if a writer forgot newlines."""
    try:
        text = line.decode(encoding).strip()
    except UnicodeDecodeError as error:
        yield Unreadable(f"not {encoding.upper()}: {error.reason} at byte {error.start + 1}")
        return
    start = 0
    while start < len(text):
        try:
            value, end = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            yield Unreadable(f"broken JSON: {error.msg} at character {error.pos + 1}")
            return
        except _INVALID_NUMBER_OR_DEPTH as error:
            yield Unreadable(f"broken JSON: {error}")
            return
        yield value
        start = _SPACE.match(text, end).end()  # type: ignore[union-attr]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; raise a ValueError if it has two values of one name."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"two values of {first_duplicate([name for name, _ in pairs])!r}")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def first_duplicate(names: list[str]) -> str | None:
    """Return the first name that occurs a second time; None if all are different."""
    return next((name for index, name in enumerate(names) if name in names[:index]), None)


def _has_a_row_per_line(path: Path) -> bool:
    with open_text(path, newline="\n", errors="replace") as file:
        first, second = _next_line(file), _next_line(file)
    if not second:  # a single line of several values, or a broken one
        return not first.startswith("[") and ("\ufffd" in first or not _is_value(first))
    if first.startswith("["):
        return _is_value(first)
    return not first.startswith("{") or _is_value(first) or _is_value(second)


def _next_line(file: io.TextIOWrapper) -> str:
    """Return the next line that is not blank, cut off at `_LINE_CHARACTERS`; empty at the end of the file."""
    while line := file.readline(_LINE_CHARACTERS):
        if line.strip():
            return line.strip()
    return ""


def _is_value(line: str) -> bool:
    """Return whether a line is one complete JSON value."""
    try:
        return bool(_DECODER.raw_decode(line)[1] == len(line))
    except _INVALID_NUMBER_OR_DEPTH:
        return False


def _whole_file(path: Path) -> NumberedRows:
    """Yield rows with their line in `.jsonl` and `.ndjson`, and otherwise with their number."""
    with open_text(path) as file:
        text = _JsonText(path, file)
        by_line = file_format(path) != ".json"
        for number, (line, value) in enumerate(_values(text), start=1):
            yield line if by_line else number, value


def _values(text: _JsonText) -> Iterator[tuple[int, Any]]:
    while first := text.next_character():
        if first != "[":
            line, value = text.line, text.value()
            for row in _rows_inside(text, value):
                yield line, row
            continue
        text.skip()
        while text.next_character() != "]":
            yield text.line, text.value()
            if text.next_character() == ",":
                text.skip()
            elif text.next_character() != "]":
                raise text.broken("Expecting ',' delimiter")
        text.skip()


def _rows_inside(text: _JsonText, value: Any) -> list[Any]:
    """Return the list of rows that one key of an object holds, as in `{"data": [...]}`; or the object as a row."""
    if not isinstance(value, dict) or value.keys() & _ROW_COLUMNS:
        return [value]
    lists = {key: found for key, found in value.items() if _is_list_of_rows(found)}
    if len(lists) > 1:
        found = f"it has rows in several keys: {', '.join(lists)}"
        raise DataError(str(text.path), found, "Write the rows of each key to a file of its own.")
    return next(iter(lists.values()), [value])


def _is_list_of_rows(value: Any) -> bool:
    """Return whether a value is a list of objects, but not of turns."""
    return bool(value) and isinstance(value, list) and isinstance(value[0], dict) and not value[0].keys() & _TURN_KEYS


class _JsonText:
    """Text of a JSON file, read in pieces; holds one value at a time.

    Args:
        path: the file, for messages.
        file: the opened file.
    """

    def __init__(self, path: Path, file: io.TextIOWrapper) -> None:
        self.path = path
        self._file = file
        self._text = ""
        self._position = 0
        self._line = 1  # of `_counted`, the position up to which line breaks are counted
        self._counted = 0

    @property
    def line(self) -> int:
        """The line of the position, from 1."""
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def next_character(self) -> str:
        """Skip white space and return the next character without skipping it; empty at the end."""
        while True:
            self._position = _SPACE.match(self._text, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read():
                return ""

    def skip(self) -> None:
        """Skip one character."""
        self._position += 1

    def value(self) -> Any:
        """Decode the value at the position and skip it.

        Raises:
            DataError: there is none, or it is broken.
        """
        self.next_character()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_WORD
                if not cut_off or not self._read():
                    raise self.broken(error.msg, error.pos) from None
                continue
            except _INVALID_NUMBER_OR_DEPTH as error:
                raise self.broken(str(error)) from None
            if end < len(self._text) or not self._read():  # a number can go on in the next piece
                self._position = end
                return value

    def broken(self, problem: str, position: int | None = None) -> DataError:
        """Return an error with the line and character of a position, by default the current one."""
        position = self._position if position is None else position
        line = self.line + self._text.count("\n", self._counted, position)
        character = position - self._text.rfind("\n", 0, position)
        fix = "Correct the file there, or write one row per line (.jsonl)."
        return DataError(f"{self.path}, line {line}", f"broken JSON: {problem} at character {character}", fix)

    def _read(self) -> bool:
        """Read a piece as long as the rest of the text, so that a long value is not decoded too often."""
        self._line, self._counted = self.line, 0  # before the text is forgotten
        rest = self._text[self._position :]
        piece = self._file.read(max(_PIECE_CHARACTERS, len(rest)))
        self._text, self._position = rest + piece, 0
        return bool(piece)
