"""Reads roles from disk: system prompt, memories with their vectors, and aliases."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kyon_pl.data.reading.files import must_exist
from kyon_pl.data.reading.json_files import json_lines
from kyon_pl.data.reading.text_files import Unreadable
from kyon_pl.demo.corpus import ROW_MEMORIES, role_memories
from kyon_pl.demo.grammar import CHARACTERS
from kyon_pl.disk import expand_home
from kyon_pl.errors import DataError, MissingFileError, SettingError
from kyon_pl.roles.memory_order import order_file, read_order

Vectors = NDArray[np.float32]

SYSTEM_PROMPT = "system_prompt.txt"
GREETING = "greeting.txt"
EMBEDDINGS = "jsonl/title_text_embed.jsonl"
TITLE_END = "｜｜｜"
VECTOR_COLUMNS = ("luotuo_openai", "bge_zh_s15", "bge_en_s15")
"""Columns of role files, the later format with one JSONL file per role: vectors in base64, big-endian float32."""


@dataclass(frozen=True)
class Role:
    """A character to play.

    Attributes:
        name: of the folder or file.
        system_prompt: the text of its file, including the line end.
        memories: scenes of the role, in the order of the file or of the file names.
        vectors: vectors of the memories, (memories, dimensions) float32, by number of dimensions; can be empty.
        aliases: a speaker whose name starts with one of them is the role; by default, the name of the folder.
        folder: the role folder; None for a role file.
        memory_number: maximum number of memories in its rows; None: the default of `build_data`.
        order_file: keeps the order of its memories, see `memory_order`; it need not exist. None for a role of the demo.
        memory_ranks: place of each memory in that order; None: memories are ordered by likeness.
        location: absolute path of the folder or file, or `demo/NAME`.
        greeting: what the role says first on a chat page. It is shown only: no prompt and no row has it.
    """

    name: str
    system_prompt: str
    memories: tuple[str, ...] = ()
    vectors: Mapping[int, Vectors] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    folder: Path | None = None
    memory_number: int | None = None
    order_file: Path | None = None
    memory_ranks: Mapping[str, int] | None = None
    location: str = ""
    greeting: str = ""


def find_roles(characters: Sequence[str], aliases: Mapping[str, list[str]]) -> list[Role]:
    """Read roles.

    Args:
        characters: role folders, folders of role folders, role files, or `demo` or `demo/NAME`.
        aliases: by the name of a role, instead of its `aliases.txt`.

    Raises:
        MissingFileError: there is no role.
        DataError: a file of a role cannot be used.
        SettingError: two roles with the same name, aliases of an unknown role, an empty alias, or a role that the
            demo does not have.
    """
    roles: dict[str, Role] = {}
    for role in (role for name in characters for role in _roles(name, aliases)):
        if role.name in roles:
            raise SettingError("characters", f"two roles are called {role.name}", "Rename one of the folders.")
        roles[role.name] = role
    if unknown := sorted({*aliases} - {*roles}):
        raise SettingError("aliases", f"there is no role {unknown[0]!r}", f"The roles are: {', '.join(roles)}.")
    return list(roles.values())


def role_to_play(name: str) -> Role:
    """Read one role.

    Args:
        name: its folder or file; `demo` for the demo's first role, or `demo/NAME`.

    Raises:
        KyonError: as `read_role`; a SettingError if the demo has no role of that name.
    """
    return next(iter(_demo_roles(name)), None) or read_role(expand_home(name))


def read_role(path: Path, aliases: Sequence[str] | None = None) -> Role:
    """Read a role folder or role file.

    Args:
        path: the folder or file.
        aliases: instead of those in the folder.

    Raises:
        MissingFileError: there is no system prompt.
        DataError: a file cannot be used.
        SettingError: an empty alias, with which every name starts.
    """
    if path.is_file():
        return _read_role_file(path, tuple(aliases or (path.stem,)))
    system_prompt = read_text(path / SYSTEM_PROMPT)
    memories, vectors = read_memories(path)
    name, file = path.resolve().name, path / "aliases.txt"
    if aliases is None and file.is_file():
        aliases = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if not all(aliases := tuple(aliases or (name,))):
        raise SettingError(f"aliases of {name}", "an empty one", "Leave it out: it would match every speaker.")
    greeting = read_text(path / GREETING).strip() if (path / GREETING).is_file() else ""
    return _at(Role(name, system_prompt, memories, vectors, aliases, path, greeting=greeting), path)


def _at(role: Role, path: Path) -> Role:
    file = order_file(path)
    return replace(role, order_file=file, memory_ranks=read_order(file), location=str(path.absolute()))


def read_memories(folder: Path) -> tuple[tuple[str, ...], dict[int, Vectors]]:
    """The memories of a role folder: from `jsonl/title_text_embed.jsonl`, else from `texts/*.txt`, else none.

    Returns:
        The texts without titles, and their vectors as in `Role`.

    Raises:
        DataError: a file cannot be used.
    """
    if (folder / EMBEDDINGS).is_file():
        return _read_embeddings(folder / EMBEDDINGS)
    texts = tuple(read_text(file).strip() for file in sorted((folder / "texts").glob("*.txt")))
    return tuple(text for text in texts if text), {}


def read_text(path: Path) -> str:
    """The text of a file, without byte order mark and with `\\n` as line end.

    Raises:
        MissingFileError: there is no such file.
        DataError: it cannot be read, or is not UTF-8.
    """
    must_exist(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"not UTF-8: {error.reason} at byte {error.start + 1}"
        raise DataError(str(path), found, "Save it as UTF-8.") from None
    except OSError as error:
        raise DataError(str(path), f"it cannot be read ({error.strerror})", "Check its permissions.") from error


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its file and line; a line can hold several.

    Raises:
        MissingFileError: there is no such file.
        DataError: a line holds anything but objects.
    """
    must_exist(path)
    for number, row in json_lines(path):
        if not isinstance(row, dict):
            found = row.problem if isinstance(row, Unreadable) else f"{type(row).__name__} instead of an object"
            raise DataError(f"{path}, line {number}", found, "Write one JSON object per line, in UTF-8.")
        yield f"{path}, line {number}", row


def _roles(name: str, aliases: Mapping[str, list[str]]) -> Iterator[Role]:
    if demo := _demo_roles(name):
        yield from demo
        return
    for path in _role_paths(expand_home(name)):
        yield read_role(path, aliases.get(path.stem if path.is_file() else path.resolve().name))


def _demo_roles(path: str) -> list[Role]:
    folder, _, name = path.partition("/")
    if folder != "demo":
        return []
    speakers = [speaker for speaker in CHARACTERS if name in ("", speaker.name)]
    if not speakers and not Path(path).exists():
        names = ", ".join(speaker.name for speaker in CHARACTERS)
        raise SettingError(f"role {path}", "the demo has no role of that name", f"Name one of: {names}.")
    return [
        Role(
            s.name,
            s.system_prompt,
            role_memories(s),
            aliases=(s.name,),
            memory_number=ROW_MEMORIES,
            location=f"demo/{s.name}",
            greeting=s.greeting,
        )
        for s in speakers
    ]


def _role_paths(path: Path) -> list[Path]:
    if path.is_file() or (path / SYSTEM_PROMPT).is_file():
        return [path]
    found = sorted(child for child in path.glob("*") if (child / SYSTEM_PROMPT).is_file() or child.suffix == ".jsonl")
    if not found:
        fix = f"Name a folder with {SYSTEM_PROMPT} in it, or a folder of such folders."
        raise MissingFileError(str(path), "there is no role", fix)
    return found


def _read_embeddings(path: Path) -> tuple[tuple[str, ...], dict[int, Vectors]]:
    texts: list[str] = []
    vectors: list[list[float]] = []
    for where, row in json_objects(path):
        if len(row) != 1:
            raise DataError(where, f"{len(row)} keys", f"Write one key, title{TITLE_END}text, with its vector.")
        (key, vector), *_ = row.items()
        title, end, text = key.partition(TITLE_END)
        texts.append(text if end else title)
        vectors.append(_as_vector(where, vector, vectors))
    return tuple(texts), _by_dimensions([vectors])


def _read_role_file(path: Path, aliases: tuple[str, ...]) -> Role:
    system_prompt, texts = None, []
    columns: dict[str, list[Any]] = {name: [] for name in VECTOR_COLUMNS}
    for where, row in json_objects(path):
        kinds = {row.get(name) for name in VECTOR_COLUMNS if isinstance(row.get(name), str)}
        if "system_prompt" in kinds:
            system_prompt = _role_text(where, row)
        elif "config" not in kinds:
            texts.append(_role_text(where, row))
            for name, vectors in columns.items():
                if row.get(name):
                    vectors.append(_as_vector(f"{where}, {name}", _from_base64(where, row[name]), vectors))
    if system_prompt is None:
        fix = 'Add a line {"text": the system prompt, "luotuo_openai": "system_prompt"}.'
        raise DataError(str(path), "no line with the system prompt", fix)
    complete = [vectors for vectors in columns.values() if len(vectors) == len(texts)]
    return _at(Role(path.stem, system_prompt, tuple(texts), _by_dimensions(complete), aliases), path)


def _role_text(where: str, row: Mapping[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise DataError(where, "no text in 'text'", "Correct the line.")
    return text


def _from_base64(where: str, text: Any) -> list[float]:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype=">f4").tolist()  # type: ignore[no-any-return]
    except (binascii.Error, TypeError, ValueError):
        raise DataError(where, "not a vector: base64 of big-endian float32 is expected", "Correct the line.") from None


def _as_vector(where: str, vector: Any, others: list[Any]) -> list[float]:
    if not isinstance(vector, list) or not vector or not all(type(number) in (int, float) for number in vector):
        raise DataError(where, "not a vector: a list of numbers is expected", "Correct the line.")
    if others and len(vector) != len(others[0]):
        found = f"a vector of {len(vector):,} numbers, after one of {len(others[0]):,}"
        raise DataError(where, found, "Use one model for all vectors.")
    return vector


def _by_dimensions(columns: list[list[list[float]]]) -> dict[int, Vectors]:
    return {len(vectors[0]): np.array(vectors, dtype=np.float32) for vectors in columns if vectors}
