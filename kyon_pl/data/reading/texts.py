"""Whether a value is text that can be used, and in words why it is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAX_CHARACTERS = 1_000_000
"""The longest text: several times 32,768 tokens, the model's longest input; encoding 50 MB takes minutes."""

_QUOTES = re.compile(r"(?:[^:：\n]{0,40}[:：])?[\s「」『』“”‘’\"']*")
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character: bytes that are not text become one."""


class Unusable(Exception):  # noqa: N818
    """Why a row cannot be used, as kind, `: ` and details; never leaves this package."""


def text_problem(row: Mapping[str, Any], column: str) -> str:
    """Return why a column is no text that can be used, as kind, `: ` and details; empty if it is."""
    if column not in row:
        return f"no {column!r}"
    text = row[column]
    if text is None:
        return f"null in {column!r}"
    if not isinstance(text, str):
        return f"no text in {column!r}: {excerpt(text)}"
    if not text.strip():
        return f"empty {column!r}"
    if len(text) > MAX_CHARACTERS:
        return f"too long: {len(text):,} characters in {column!r}"
    if "\0" in text:
        return f"no text in {column!r}: it holds a NUL, as binary data does"
    return f"half a character in {column!r}: a lone surrogate" if SURROGATE.search(text) else ""


def is_blank(value: Any) -> bool:
    """Return whether a value is missing, or text of blanks."""
    return value is None or (isinstance(value, str) and not value.strip())


def nothing_said(text: str) -> bool:
    """Return whether a reply has only quotes, with or without a name before them."""
    return _QUOTES.fullmatch(text) is not None


def excerpt(value: Any) -> str:
    """Return the start of a value and its type, for messages."""
    return f"{str(value)[:40]!r} ({type(value).__name__})"
