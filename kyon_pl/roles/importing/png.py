"""Reading the text entries of a PNG, in which character cards are stored."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from kyon_pl.errors import DataError

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
MOST_CHUNKS, LARGEST_TEXT_BYTES = 10_000, 50_000_000
_FIX = "Download or export the card again; pictures that were resized or converted have lost the card."


def png_texts(path: Path) -> dict[str, bytes]:
    """The text entries of a PNG (tEXt, zTXt, iTXt) by keyword; of two with one keyword, the last.

    Source: PNG specification, third edition, 11.3.3. Chunks of other types are skipped.

    Args:
        path: a file that starts with `PNG_HEAD`.

    Raises:
        DataError: the file is cut off, a checksum is wrong, or an entry cannot be decompressed.
    """
    texts: dict[str, bytes] = {}
    for kind, content in _chunks(path, path.read_bytes()):
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, _, rest = content.partition(b"\0")
            texts[keyword.decode("latin-1").lower()] = _text(path, kind, rest)
    return texts


def _chunks(path: Path, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(PNG_HEAD)
    for _ in range(MOST_CHUNKS):
        if len(data) < place + 12:
            raise DataError(str(path), f"the PNG is cut off at byte {len(data):,}", _FIX)
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        end = place + 8 + length
        if end + 4 > len(data):
            found = f"the PNG is cut off: an entry at byte {place:,} has {length:,} bytes, more than the file"
            raise DataError(str(path), found, _FIX)
        content = data[place + 8 : end]
        if zlib.crc32(kind + content) != struct.unpack(">I", data[end : end + 4])[0]:
            name = kind.decode("latin-1")
            raise DataError(str(path), f"the PNG is damaged: wrong checksum of {name!r} at byte {place:,}", _FIX)
        if kind == b"IEND":
            return
        yield kind, content
        place = end + 4
    raise DataError(str(path), f"the PNG has more than {MOST_CHUNKS:,} entries", _FIX)


def _text(path: Path, kind: bytes, rest: bytes) -> bytes:
    """The text after the keyword and its NUL."""
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":  # a byte for the method of compression
        return _inflated(path, rest[1:])
    is_compressed, rest = rest[:1] == b"\1", rest[2:]
    _, _, rest = rest.partition(b"\0")  # the language
    _, _, rest = rest.partition(b"\0")  # the keyword in that language
    return _inflated(path, rest) if is_compressed else rest


def _inflated(path: Path, data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, LARGEST_TEXT_BYTES)
    except zlib.error as error:
        raise DataError(str(path), f"a text of the PNG cannot be decompressed ({error})", _FIX) from None
    if inflater.unconsumed_tail:
        raise DataError(str(path), f"a text of the PNG has more than {LARGEST_TEXT_BYTES:,} bytes", _FIX)
    return text
