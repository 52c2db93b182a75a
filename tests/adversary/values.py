"""Wrong values, and where they are put into a document of mappings and lists."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ways import ESCAPES


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# the name of a kind of value -> one, as JSON and YAML have it
WRONG: dict[str, Any] = {
    "null": None,
    "true": True,
    "0": 0,
    "-1": -1,
    "3": 3,
    "1e9": 10**9,
    "1e30": 10**30,
    "a fraction": 0.3,
    "not a number": float("nan"),
    "infinity": float("-inf"),
    "no text": "",
    "a text": "x",
    "no pattern": "((",
    "a path that goes up": "../../../../etc/passwd",
    "control characters": ESCAPES,
    "NUL": "a\0b",
    "5,000 letters": "y" * 5000,
    "a function": "os.getcwd",
    "a lone surrogate": "\ud800",
    "an empty list": [],
    "a list": ["a", 1, None],
    "an empty mapping": {},
    "a mapping": {"class_path": "os.getcwd", "init_args": {"a": 1}},
    "nested deeply": nested(90),
}
MOST_KEYS = 60
SURROGATE = "a lone surrogate"  # JSON can hold it, YAML cannot


def keys_of(document: Any, depth: int = 3) -> Iterator[tuple[str | int, ...]]:
    """The places of a document, from outside to inside; of a list the first item only, of a vocabulary two words."""
    if depth == 0:
        return
    pairs = list(document.items()) if isinstance(document, dict) else list(enumerate(document[:1]))
    if len(pairs) > MOST_KEYS:
        pairs = pairs[:2]
    for key, value in pairs:
        yield (key,)
        if isinstance(value, dict | list):
            yield from ((key, *inner) for inner in keys_of(value, depth - 1))


def with_value(document: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """A copy with another value there."""
    document = copy.deepcopy(document)
    *outer, last = place
    holder = document
    for key in outer:
        holder = holder[key]
    holder[last] = value
    return document


def without(document: Any, place: tuple[str | int, ...]) -> Any:
    """A copy without that key or item."""
    document = copy.deepcopy(document)
    *outer, last = place
    holder = document
    for key in outer:
        holder = holder[key]
    del holder[last]
    return document


def write_json(path: Path, document: Any) -> None:
    """With NaN, infinity and lone surrogates, as Python has them."""
    path.write_text(json.dumps(document), encoding="utf-8")
