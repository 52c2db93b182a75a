"""Ways of damaging a file: its bytes, and the values of its keys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from values import with_value, write_json
from ways import laughs

Damage = Callable[[Path], object]

BYTES: dict[str, Damage] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "binary": lambda file: file.write_bytes(bytes(range(256)) * 8),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "UTF-16": lambda file: file.write_bytes(file.read_bytes().decode("latin-1").encode("utf-16")),
    "list": lambda file: file.write_text("[1, [2]]"),
    "text": lambda file: file.write_text('"words"'),
    "null": lambda file: file.write_text("null"),
    "empty object": lambda file: file.write_text("{}"),
    "nested by 100,000": lambda file: file.write_text('{"data": ' * 100_000),
    "nested by 500": lambda file: file.write_text('{"data": ' * 500 + "1" + "}" * 500),
    "digits": lambda file: file.write_text('{"data": ' + "9" * 5000 + "}"),
    "NUL": lambda file: file.write_text('{"data": "a\\u0000"}'),
    "half a character": lambda file: file.write_text('{"data": "\\ud800"}'),
    "aliases": lambda file: file.write_bytes(laughs()),
    "tags": lambda file: file.write_text("data: [!!int '', !!bool x, !!timestamp x, !!float x]"),
    "folder": lambda file: [file.unlink(), file.mkdir()],
    "link to nowhere": lambda file: [file.unlink(), file.symlink_to("nowhere")],
    "link to itself": lambda file: [file.unlink(), file.symlink_to(file.name)],
    "endless device": lambda file: [file.unlink(), file.symlink_to("/dev/zero")],
}
VALUES: tuple[Any, ...] = (None, True, -1, 0, 5, 10**30, 1.5, float("inf"), float("nan"), "x", "", [], [1], ["x"], {})
VALUES += ({"x": "y"}, [[]], "../x", "((")


def keys_of(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """The keys of an object, and those of the objects in it."""
    nested = [(key, inner) for key, value in content.items() if isinstance(value, dict) for inner in value]
    return [*((key,) for key in content), *nested]


def set_value(file: Path, key: tuple[str, ...], value: Any) -> None:
    """Give a key of a JSON file another value."""
    write_json(file, with_value(json.loads(file.read_text(encoding="utf-8")), key, value))


def remove(path: Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def damages(file: Path, more_keys: tuple[str, ...] = ()) -> Iterator[tuple[str, Damage]]:
    """Every way of damaging a file, by name; of a JSON object each key with each wrong value, and without it.

    Args:
        file: undamaged.
        more_keys: keys that it lacks, and may hold.
    """
    yield from BYTES.items()
    if file.suffix != ".json" and file.name != "COMPLETE":
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    for key in [*keys_of(content), *((key,) for key in more_keys)]:
        for value in VALUES:
            name = f"{'.'.join(key)} = {json.dumps(value)}"
            yield name, lambda file, key=key, value=value: set_value(file, key, value)  # type: ignore[misc]
