"""Reading JSON and YAML files that may be damaged, and what libraries raise for such files.

Whatever is wrong with a file ends in an error that names the file and, where it is one, the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from kyon_pl.errors import CheckpointError, KyonError, MissingFileError

T = TypeVar("T")

COPY_AGAIN = "Copy or download this file again."
LARGEST_BYTES = 200_000_000
DEEPEST, MOST_VALUES = 100, 1_000_000  # recursive code below stays far from Python's limit; YAML's aliases multiply

# What transformers, PEFT, Lightning, tokenizers and torch raise for a file with unexpected content: they check few
# values, so that a wrong type fails in whatever is done with it first. No KeyboardInterrupt, MemoryError or SystemExit.
LIBRARY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,  # of transformers' configurations
    TypeError,
    UnpicklingError,
    ValueError,
    re.error,
)
_KINDS: dict[type, str] = {
    bool: "true or false",
    dict: "a mapping of keys to values",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "a text",
}


def read_text(file: Path, fix: str = COPY_AGAIN) -> str:
    """Read a text file in UTF-8.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: it is something other than a regular file, too large, unreadable, or not UTF-8.
    """
    try:
        if not file.exists():
            raise MissingFileError(str(file), "there is no such file", fix)
        if not file.is_file():  # a pipe would block, and a device may be endless
            raise CheckpointError(str(file), "it is not a regular file", fix)
        if (size := file.stat().st_size) > LARGEST_BYTES:
            raise CheckpointError(str(file), f"it is too large ({size / 1e6:,.0f} MB)", fix)
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(str(file), f"not UTF-8: {error.reason} at byte {error.start + 1}", fix) from None
    except KyonError:  # some are OSErrors
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(str(file), f"it cannot be read ({_reason(error)})", fix) from None


def read_json_object(file: Path, fix: str = COPY_AGAIN) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: the file cannot be read, is not JSON in UTF-8, or holds something other than an object.
    """
    return _object(json.loads, file, fix)


def read_yaml_mapping(file: Path, fix: str = COPY_AGAIN) -> dict[str, Any]:
    """Read a YAML file that holds one mapping of keys to plain values.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: the file cannot be read, is not YAML in UTF-8, or holds something other than a mapping.
    """
    import yaml  # not needed for JSON

    def load(text: str) -> object:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(str(file), f"not YAML: {reason}", fix) from None
        except (AttributeError, LookupError) as error:  # a tag, such as !!int, of a value that is none
            raise ValueError(f"not YAML: {type(error).__name__}: {error}") from None

    return _object(load, file, fix)


def _object(parse: Callable[[str], object], file: Path, fix: str) -> dict[str, Any]:
    text = read_text(file, fix)
    try:
        content = parse(text)
    except json.JSONDecodeError as error:
        found = f"broken JSON: {error.msg} at character {error.colno}"
        raise CheckpointError(f"{file}, line {error.lineno}", found, fix) from None
    except RecursionError:
        raise CheckpointError(str(file), "it is nested too deeply", fix) from None
    except ValueError as error:  # such as a number of 5,000 digits
        raise CheckpointError(str(file), f"it cannot be read ({error})", fix) from None
    if not isinstance(content, dict):
        raise CheckpointError(str(file), f"it holds a {type(content).__name__} in place of an object", fix)
    if fault := fault_of_values(content):
        raise CheckpointError(str(file), fault, fix)
    return content


def fault_of_values(content: object) -> str | None:
    """The reason why nested values cannot be worked with; None if they can.

    They are nested too deeply or without end, too many, or hold text that is not Unicode.
    """
    rest, seen = [(content, 0)], 0
    while rest:
        value, depth = rest.pop()
        seen += 1
        if seen + len(rest) > MOST_VALUES:
            return f"it holds more than {MOST_VALUES:,} values"
        if depth > DEEPEST:
            return "it is nested too deeply"
        if isinstance(value, dict):
            rest += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list | tuple | set):
            rest += [(inner, depth + 1) for inner in value]
        elif isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
            return "it holds a text that is not Unicode, or a NUL"
    return None


def entry(content: Mapping[str, Any], key: str, kind: type[T], where: str | Path, fix: str = COPY_AGAIN) -> T:
    """The value of a key, after a check of its type.

    Args:
        content: of a file.
        key: a key of it.
        kind: `bool`, `dict`, `float` (or a whole number), `int`, `list` or `str`.
        where: the file, for the error.
        fix: for the error.

    Raises:
        CheckpointError: the key is missing, or its value is of another type; the error names both.
    """
    if key not in content:
        raise CheckpointError(f"{where}: {key}", "it is missing", fix)
    if not is_of_kind(value := content[key], kind):
        raise CheckpointError(f"{where}: {key}", f"{shorten(value)} is not {_KINDS[kind]}", fix)
    checked: T = value
    return checked


def is_of_kind(value: object, kind: type) -> bool:
    """Whether a value is of a type of JSON: true is no number, and a whole number is also a number."""
    if kind is not bool and isinstance(value, bool):
        return False
    return isinstance(value, int | float if kind is float else kind)


def shorten(value: object) -> str:
    """A value for a message, on one line, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextmanager
def explained(library: str, where: str | Path, fix: str = COPY_AGAIN) -> Iterator[None]:
    """Turn what a library raises for a damaged file into a CheckpointError. Put only the call that reads it inside.

    Args:
        library: its name, for the error.
        where: the file or folder, for the error.
        fix: for the error.

    Raises:
        CheckpointError: the library raised one of `LIBRARY_ERRORS`, or its Rust code panicked.
    """
    try:
        yield
    except KyonError:
        raise
    except LIBRARY_ERRORS as error:
        raise CheckpointError(str(where), f"{library} refuses it: {_reason(error)}", fix) from error
    except BaseException as panic:  # of a library's Rust code; its class cannot be imported
        if type(panic).__module__ != "pyo3_runtime":
            raise
        raise CheckpointError(str(where), f"{library} cannot read it: {panic}", fix) from panic


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if isinstance(error, ValueError | RuntimeError) and " " in text:
        return text[:300]
    return f"{type(error).__name__}: {text}"[:300].removesuffix(": ")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
