"""Which kind of file is to be imported."""

from __future__ import annotations

from pathlib import Path

from kyon_pl.data.reading.files import must_exist
from kyon_pl.data.reading.text_files import file_format
from kyon_pl.errors import DataError
from kyon_pl.roles.importing.cards import is_card, json_value
from kyon_pl.roles.importing.chat_logs import is_discord_export, log_share
from kyon_pl.roles.importing.found import Kind, read_text
from kyon_pl.roles.importing.png import PNG_HEAD

_LOG_SHARE = 0.5  # of the lines that start a message
_TABLES = (".csv", ".tsv", ".xlsx", ".parquet", ".arrow", ".jsonl", ".ndjson")
_OTHER_FILES = {
    b"\xff\xd8\xff": "a JPEG picture",
    b"RIFF": "a WebP picture or a sound",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF",
    b"\x7fELF": "a program",
}


def recognized(path: Path) -> Kind:
    """The kind of a file.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is none of the kinds.
    """
    must_exist(path)
    with path.open("rb") as opened:
        head = opened.read(16)
    if head.startswith(PNG_HEAD):
        return "card"
    if what := next((what for magic, what in _OTHER_FILES.items() if head.startswith(magic)), None):
        raise DataError(str(path), f"it is {what}", "Name a card (JSON or PNG), a chat log, a table or a text.")
    if file_format(path) in _TABLES:
        return "table"
    text = read_text(path)
    if text.lstrip()[:1] in ("{", "[") and (file_format(path) == ".json" or text.lstrip()[0] == "{"):
        value = json_value(path, text)
        return "card" if is_card(value) else "chat_log" if is_discord_export(value) else "table"
    return "chat_log" if log_share(text) >= _LOG_SHARE else "novel"
