"""Config files: their paths or names on the command line, and YAML that is refused before a parser reads it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from kyon_pl.errors import SettingError

CONFIGS = Path(__file__).parents[1] / "configs"  # in a clone, a link to configs/
REMOTE_CODE = "trust_remote_code"
_SECTIONS = ("trainer", "model", "data")
_MAX_DEPTH = 100
_MAX_VALUES = 100_000
_MAX_BYTES = 10_000_000
_PATHS = (
    "adapter", "bad_rows_file", "base", "cache_dir", "characters", "ckpt_path", "config", "default_root_dir",
    "dialogues", "output", "password_file", "path", "png", "predict_source", "random_config", "runs", "source",
    "test_source", "validation_source",
)  # fmt: skip
_MAX_DIGITS = 1000  # Python converts 4300
_MAX_NAME_BYTES = 255  # of Linux and macOS
_FIX = "Write settings as `key: value`, as in configs/lora.yaml."


def names() -> list[str]:
    """The names of the package's configs, such as `lora` and `overlay/ddp`."""
    return sorted(file.relative_to(CONFIGS).with_suffix("").as_posix() for file in CONFIGS.rglob("*.yaml"))


def with_named_configs(words: list[str]) -> list[str]:
    """Replace the names of configs on a command line by their paths.

    A file comes before a config of the same name. `configs/NAME.yaml` is the config NAME where there is no such file.

    Args:
        words: the command line.

    Raises:
        SettingError: a YAML file that does not exist.
    """
    replaced = list(words)
    for position, option, file in _configs(words):
        replaced[position] = option + _path(file)
    return replaced


def config_name(word: str) -> str:
    """The word for a config on a command line: the name in place of the path that `with_named_configs` put there."""
    return word.replace(f"{CONFIGS}/", "").removesuffix(".yaml") if str(CONFIGS) in word else word


def config_files(words: list[str]) -> list[str]:
    """The config files that a command line names, in any of the parser's spellings.

    Args:
        words: the command line.
    """
    return [file for _, _, file in _configs(words)]


def _configs(words: list[str]) -> Iterator[tuple[int, str, str]]:
    """The position of each word that names a config, what precedes the name in that word, and the name."""
    for position, word in enumerate(words):
        if word in ("--config", "-c"):
            if position + 1 < len(words):
                yield position + 1, "", words[position + 1]
        elif match := re.match("--config=|-c=?", word):
            yield position, match[0], word[match.end() :]


def _path(word: str) -> str:
    name = word.removeprefix("configs/").removesuffix(".yaml")
    if Path(word).is_file():
        return word
    if name in names():
        return str(CONFIGS / f"{name}.yaml")
    if word.endswith((".yaml", ".yml")):
        close = difflib.get_close_matches(name.removesuffix(".yml"), names(), n=1)
        fix = f"Did you mean '{close[0]}'? " if close else ""
        fix += f"Give the path of a YAML file, or one of the names {', '.join(names())}"
        raise SettingError("--config", f"there is no file '{word}'", fix)
    return word


def no_remote_code(where: str) -> SettingError:
    """The error for `trust_remote_code`, which is refused everywhere.

    Args:
        where: the key, with file and line where it is from a file.
    """
    return SettingError(
        where,
        "no code from a repository is ever run: model and tokenizer are part of kyon_pl, and only tensors are read",
        f"Leave {REMOTE_CODE} out; a base in ChatGLM2's layout needs none of its own code.",
    )


def read_config_file(file: Path) -> yaml.MappingNode:
    """Read a YAML file of settings, and refuse what the parser would accept or report without a line.

    Args:
        file: that exists.

    Returns:
        Its content as nodes, which know their lines.

    Raises:
        SettingError: not UTF-8, not YAML, not a mapping, a duplicate key, or `trust_remote_code`; it names file and
            line.
    """
    try:
        root = yaml.compose(_text(file), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        found = f"not UTF-8: {error.reason} at byte {error.start + 1}"
        raise SettingError(str(file), found, "Save the file as UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SettingError(f"{file}{line}", f"not YAML: {error.problem}", "Correct the file at that line.") from None
    except yaml.YAMLError as error:
        raise SettingError(str(file), f"not YAML: {str(error).splitlines()[0]}", "Correct the file.") from None
    except RecursionError:
        raise SettingError(str(file), "not YAML that can be read: nested too deeply", _FIX) from None
    if not isinstance(root, yaml.MappingNode):
        raise SettingError(str(file), f"{_kind(root)} in place of settings", _FIX)
    for key, value in root.value:
        if key.value == "config" and isinstance(value, yaml.ScalarNode) and value.tag != "tag:yaml.org,2002:null":
            fix = "Name each file on the command line: --config one.yaml --config two.yaml"
            raise SettingError(f"{place(file, key)}: config", "a config cannot include another", fix)
        if key.value in _SECTIONS and not isinstance(value, yaml.MappingNode):
            raise SettingError(f"{place(file, key)}: {key.value}", f"{_kind(value)} in place of settings", _FIX)
    _count_values(file, root, {}, depth=0)
    _check_mappings(file, root, depth=0)
    return root


def _text(file: Path) -> str:
    """The content of a regular file of a reasonable size; others may have no end."""
    try:
        if not file.is_file():
            found = "it is not a regular file" if file.exists() else f"there is no file '{file}'"
            fix = f"Give the path of a YAML file, or one of the names {', '.join(names())}"
            raise SettingError("--config" if not file.exists() else str(file), found, fix)
        if file.stat().st_size > _MAX_BYTES:
            raise SettingError(str(file), "it is too large for a file of settings", _FIX)
        return file.read_text(encoding="utf-8")
    except OSError as error:
        found = f"it cannot be read ({error.strerror})"
        raise SettingError(str(file), found, "Give the path of a YAML file that can be read") from None


def _count_values(file: Path, node: yaml.Node, counts: dict[int, int], depth: int) -> int:
    """The number of values below a node with all aliases unfolded, each node being visited once.

    A few lines of anchors can unfold into more values than memory holds, and a node can contain itself.
    """
    if counts.get(id(node)) == 0:
        raise SettingError(place(file, node), "it contains itself through an alias", "Write the settings out.")
    if depth > _MAX_DEPTH:
        raise SettingError(place(file, node), "nested too deeply", "No setting is.")
    if id(node) not in counts:
        counts[id(node)] = 0
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        count = 1 + sum(_count_values(file, part, counts, depth + 1) for part in inner)
        if count > _MAX_VALUES:
            raise SettingError(place(file, node), f"it unfolds into more than {_MAX_VALUES:,} values", _FIX)
        counts[id(node)] = count
    return counts[id(node)]


def check_text(name: str, where: str, text: str) -> None:
    """Refuse a text that no setting can hold: the operating system takes neither such a file name nor such characters.

    Args:
        name: of the setting, dotted.
        where: the name, with file and line where it is from a file.
        text: its value.

    Raises:
        SettingError: a NUL, half a surrogate pair, a number without end, or a file name that is too long.
    """
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        raise SettingError(where, "half a character (a lone surrogate) in its text", "Type it again.") from None
    if b"\0" in encoded:
        raise SettingError(where, "a NUL in its text", "Remove it.")
    digits = text.strip().lstrip("+-").replace("_", "")
    if len(digits) > _MAX_DIGITS and digits.isdecimal():
        raise SettingError(where, f"a number of {len(digits):,} digits", "Write a smaller one.")
    longest = max(map(len, encoded.split(b"/")))
    if longest > _MAX_NAME_BYTES and name.rpartition(".")[2] in _PATHS and not text.startswith("["):
        shown = f"{text[:40]}…"
        fix = 'Look for a `"` that is missing on the command line, or shorten the name'
        raise SettingError(where, f"'{shown}' has {longest:,} bytes, and the name of a file at most 255", fix)


def _check_mappings(file: Path, node: yaml.Node, depth: int) -> None:
    """Refuse duplicate keys and `trust_remote_code`, at any depth."""
    if depth > _MAX_DEPTH:
        raise SettingError(place(file, node), "nested too deeply", "No setting is.")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_mappings(file, item, depth + 1)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise SettingError(place(file, key), f"{_kind(key)} in place of a key", _FIX)
        name, line = str(key.value), key.start_mark.line + 1
        if name == REMOTE_CODE:
            raise no_remote_code(f"{place(file, key)}: {name}")
        if name in lines:
            fix = "Keep one of them, with what belongs under it."
            raise SettingError(f"{place(file, key)}: {name}", f"the key is in line {lines[name]} too", fix)
        lines[name] = line
        _check_mappings(file, value, depth + 1)


def place(file: Path, node: yaml.Node) -> str:
    """File and line of a node.

    Args:
        file: that it is from.
        node: a key or value.
    """
    return f"{file}, line {node.start_mark.line + 1}"


def _kind(node: yaml.Node | None) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a text" if isinstance(node, yaml.ScalarNode) and node.value else "nothing"
