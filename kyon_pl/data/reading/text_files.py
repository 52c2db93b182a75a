"""Opening text files: decompressed, in the encoding that they were written in."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

NumberedRows = Iterator[tuple[int, Any]]
"""Pairs of a row's number, from 1, and the row: a dict, or `Unreadable`. In JSONL and CSV the number is the line."""

_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BYTE_ORDER_MARKS = {  # the marks of UTF-32 start with those of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BUFFER_BYTES = 1 << 20
_SAMPLE_BYTES = 1 << 16  # from the first byte that is not ASCII
_COMMON_SHARE = 0.7  # of the characters of Chinese text, in GB 2312; wrongly decoded text has up to 0.6


@dataclass(frozen=True)
class Unreadable:
    """Replaces a row that could not be read.

    Attributes:
        problem: the kind of problem, then `: ` and details.
    """

    problem: str


def file_format(path: Path) -> str:
    """Return the suffix that names a file's format, in lower case: `.csv` of `rows.CSV` and of `rows.csv.gz`."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix in _COMPRESSED else suffix


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading; gzip and zstd are recognized by their first bytes and decompressed."""
    file = path.open("rb")
    head = file.read(4)
    codec = next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), None)
    if codec is None:
        file.seek(0)
        return file
    file.close()
    from pyarrow import input_stream  # the import takes 0.1 s

    return io.BufferedReader(input_stream(str(path), compression=codec), _BUFFER_BYTES)


def open_text(path: Path, *, newline: str | None = None, errors: str = "strict") -> io.TextIOWrapper:
    """Open a file as text, see `open_binary` and `text_encoding`.

    Args:
        path: the file.
        newline: as of `open`.
        errors: as of `open`.
    """
    return io.TextIOWrapper(open_binary(path), encoding=text_encoding(path), newline=newline, errors=errors)


def text_encoding(path: Path) -> str:
    """Return the name of a text file's encoding.

    It is UTF-8, -16 or -32 if the file starts with a byte order mark, or UTF-16 if one of the first two bytes is 0.
    Otherwise it is GB18030 if the first text that is not ASCII is no UTF-8, but Chinese in GB18030; else UTF-8.
    """
    with open_binary(path) as file:
        piece = file.read(_BUFFER_BYTES)
        for mark, encoding in _BYTE_ORDER_MARKS.items():
            if piece.startswith(mark):
                return encoding
        if 0 in piece[:2]:
            return "utf-16-be" if piece[0] == 0 else "utf-16-le"
        while piece and piece.isascii():
            piece = file.read(_BUFFER_BYTES)
        start = next((index for index, byte in enumerate(piece) if byte > 127), 0)
        sample = piece[start : start + _SAMPLE_BYTES]
        if len(sample) < _SAMPLE_BYTES:
            sample += file.read(_SAMPLE_BYTES - len(sample))
    return "gb18030" if _decoded(sample, "utf-8") is None and _is_chinese(sample) else "utf-8"


def _decoded(sample: bytes, encoding: str) -> str | None:
    """Decode the start of a text, which can end within a character; None if it is not in this encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return None


def _is_chinese(sample: bytes) -> bool:
    """Return whether bytes are Chinese in GB18030: any bytes can be valid there, but give rare characters."""
    characters = [character for character in _decoded(sample, "gb18030") or "" if not character.isascii()]
    common = len("".join(characters).encode("gb2312", "ignore")) // 2
    return bool(characters) and common >= _COMMON_SHARE * len(characters)
