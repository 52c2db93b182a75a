"""The table of all options: `--help` and unknown keys, without importing torch or Lightning.

`options.json` holds the table. `make docs` writes it from the parsers of the commands, and a test compares the two.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from kyon_pl.cli.settings import REMOTE_CODE, check_text, no_remote_code, place
from kyon_pl.errors import SettingError
from kyon_pl.language import in_chinese, localized, width, wrapped

TABLE = Path(__file__).with_name("options.json")
ALLOW_CODE = "allow_code"
"""The option of `cli.allowed_code`, which is no setting."""
LINKED = {
    "data.tokenizer": "model.base",
    "data.tokenizer_revision": "model.revision",
    "data.seed": "seed_everything",
}
"""Settings of the data that `cli.arguments.link_settings` takes from others."""
SPELLINGS = {"-p": "--prompt", "--dry-run": "--dry_run"}
"""Other spellings of an option."""

# keys of every command, which are no settings
_EVERYWHERE = ("config", "help", "print_config")
# how a class is written in YAML: any key below these belongs to the class
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs", "help")
_SIMPLE = ("text", "int", "number", "true/false", "null", "flag", "Path")
_TRAINER = (
    "accelerator", "devices", "strategy", "precision", "max_epochs", "max_steps", "max_time", "accumulate_grad_batches",
    "gradient_clip_val", "val_check_interval", "limit_val_batches", "log_every_n_steps", "callbacks", "logger",
    "default_root_dir",
)  # fmt: skip
_HEADINGS = {
    "model": "model: the base and its adapter:",
    "data": "data: rows and batches:",
    "held_out": "held_out: replies to held-out questions:",
    "replies": "replies: the file that predict writes:",
    "trainer": "trainer: Lightning's Trainer:",
}
_CONFIG_HELP = (
    "  -c, --config FILE_OR_NAME         a YAML file, or the name of a config; of several, the last one wins",
    "  --print_config                    print all options with their values as YAML, and exit",
)
_CODE_HELP = "  --allow_code MODULE               let settings name classes of this module too; may be repeated"
_NAME_WIDTH, _MOST_COLUMNS = 36, 120


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option of a command, which is a key of its YAML too.

    Attributes:
        name: dotted, as typed after `--`.
        types: the types that it takes: a name such as `int` or `LoraConfig`, `{"choices": [...]}` or
            `{"list": [types]}`.
        default: as in YAML.
        meaning: from the docstring.
        required: whether the command needs it.
    """

    name: str
    types: list[Any]
    default: Any = None
    meaning: str = ""
    required: bool = False

    def takes(self, quote: str = "") -> str:
        """The types in words, such as `int or null`.

        Args:
            quote: put around each choice.
        """
        return _in_words(self.types, quote)

    @property
    def nested(self) -> bool:
        """Whether it takes keys of its own: those of a class or a mapping."""
        kinds = [inner for kind in self.types for inner in (kind["list"] if _is_list(kind) else [kind])]
        return any(isinstance(kind, str) and kind not in _SIMPLE for kind in kinds)

    @property
    def default_text(self) -> str:
        """The default as in YAML; for a class its name and arguments."""
        if self.required:
            return "required"
        if isinstance(self.default, dict) and "class_path" in self.default:
            arguments = ", ".join(f"{key}: {value}" for key, value in self.default.get("init_args", {}).items())
            return str(self.default["class_path"]).rpartition(".")[2] + (f" ({arguments})" if arguments else "")
        text = yaml.safe_dump(self.default, default_flow_style=True, allow_unicode=True, width=1000)
        return str(text).removesuffix("...\n").strip()


def _is_list(kind: Any) -> bool:
    return isinstance(kind, dict) and "list" in kind


def _in_words(types: list[Any], quote: str) -> str:
    names = []
    for kind in types:
        if isinstance(kind, str):
            names.append(kind)
        elif _is_list(kind):
            names.append(f"list of {_in_words(kind['list'], quote)}")
        else:
            names.append("/".join(f"{quote}{choice}{quote}" for choice in kind["choices"]))
    return " or ".join(dict.fromkeys(names))


@cache
def read_table() -> dict[str, Any]:
    """`options.json`: `versions` of the libraries, `settings` of the YAML of fit, and `commands`."""
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


@cache
def options_of(command: str) -> dict[str, Option]:
    """All options of a command by name.

    Args:
        command: its name.
    """
    entry = read_table()["commands"][command]
    entries = [*(read_table()["settings"] if entry["reads_settings"] else []), *entry["options"]]
    return {option["name"]: Option(**option) for option in entries}


def check_option_names(words: list[str]) -> None:
    """Refuse unknown options on a command line.

    Options of a class among the settings are left to the parser, which imports the class.

    Args:
        words: the command line, the command first.

    Raises:
        SettingError: it names the option and the closest known one.
    """
    for word in words[1:]:
        if word == "--":
            return
        name = SPELLINGS.get(word, word).partition("=")[0]
        if name.startswith("--") and " " not in name:  # argparse takes a word with a space as a value
            key = name[2:].removesuffix("+")
            if key == ALLOW_CODE and read_table()["commands"][words[0]]["reads_settings"]:
                continue
            if _state(words[0], key) == "unknown":
                raise unknown_setting(key, key, words[0])


def check_option_values(words: list[str]) -> None:
    """Refuse texts on a command line that no setting can hold.

    Args:
        words: the command line, the command first.

    Raises:
        SettingError: it names the option.
    """
    option = words[0]
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if word.startswith("-"):
            option = SPELLINGS.get(name, name)
            check_text(option.lstrip("-"), option, value if equals else "")
        else:
            check_text(option.lstrip("-"), option, word)


def check_keys(command: str, file: Path, root: yaml.MappingNode) -> None:
    """Refuse unknown keys in a YAML file.

    Args:
        command: that reads it.
        file: its path, for the message.
        root: its content.

    Raises:
        SettingError: it names file, line, key, and the closest known key.
    """
    for key, value in _pairs(root):
        _check_key(command, file, "", key, value)


def _check_key(command: str, file: Path, section: str, key: yaml.Node, value: yaml.Node) -> None:
    name = f"{section}{key.value}"
    state = _state(command, name)
    if state == "unknown":
        raise unknown_setting(name, f"{place(file, key)}: {name}", command)
    if state == "known" and isinstance(value, yaml.MappingNode):
        for inner_key, inner_value in _pairs(value):
            _check_key(command, file, f"{name}.", inner_key, inner_value)
        return
    for text in _texts(value):
        check_text(name, f"{place(file, key)}: {name}", text)


def _texts(node: yaml.Node) -> Iterator[str]:
    """The texts in a value: those of a list, and of all that is below the keys of a class."""
    if isinstance(node, yaml.ScalarNode):
        yield node.value
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _texts(item)
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            for part in pair:
                yield from _texts(part)


def _pairs(node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Keys and values; those of a merged mapping (`<<`) in its place."""
    for key, value in node.value:
        if key.value != "<<":
            yield key, value
            continue
        for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if isinstance(merged, yaml.MappingNode):
                yield from _pairs(merged)


def _state(command: str, key: str) -> str:
    """`known`; `unknown`; or `open`, a key of a class, which only the parser can check."""
    options, parts = options_of(command), key.split(".")
    if parts[0] in _EVERYWHERE:
        return "open"
    for end in range(len(parts), 0, -1):
        name, below = ".".join(parts[:end]).removesuffix("+"), parts[end:]
        has_keys = any(other.startswith(f"{name}.") for other in options)
        takes_class = name in options and options[name].nested
        if not below and (has_keys or name in options):
            return "open" if takes_class and not has_keys else "known"
        if takes_class and (not has_keys or below[0] in _CLASS_KEYS):
            return "open"
        if has_keys or name in options:
            return "unknown" if _is_complete(name) else "open"
    return "unknown" if _is_complete("trainer") else "open"


def _is_complete(section: str) -> bool:
    """Whether the table has every key of a section: the installed library is the version that the table is from."""
    versions: dict[str, dict[str, str]] = read_table()["versions"]
    return all(version(name) == recorded for name, recorded in versions.get(section, {}).items())


def unknown_setting(name: str, where: str, command: str) -> SettingError:
    """The error for a setting that does not exist.

    Args:
        name: dotted.
        where: the name, with file and line where it is from a file.
        command: that does not have it.
    """
    if name.rpartition(".")[2] == REMOTE_CODE:
        return no_remote_code(where)
    if name in LINKED:
        found = f"it follows {LINKED[name]} and is not set by itself"
        return SettingError(where, found, f"Set {LINKED[name]}")
    if name == ALLOW_CODE and read_table()["commands"][command]["reads_settings"]:
        found = "a config file cannot allow code: whoever runs it does so, on the command line"
        return SettingError(where, found, f"Remove the key, and type --{ALLOW_CODE} MODULE if you trust the module")
    close = difflib.get_close_matches(name, options_of(command), n=1)
    fix = f"Did you mean '{close[0]}'?" if close else f"kyon-pl {command} {help_option(command)} lists all settings"
    return SettingError(where, "there is no such setting", fix)


def help_option(command: str) -> str:
    """The option that lists all settings of a command.

    Args:
        command: its name.
    """
    return "--help all" if read_table()["commands"][command]["reads_settings"] else "--help"


def wants_help(words: list[str]) -> bool:
    """Whether a command line asks for help.

    Args:
        words: the command line, the command first.
    """
    return any(word in ("-h", "--help", "--help=all") for word in words[1:])


def help_text(words: list[str]) -> str:
    """The help of a command.

    A command that reads the YAML of fit has more than a hundred settings. Its `--help` has one line for each setting of
    this package and for the Trainer's most used ones; `--help all` explains all of them.

    Args:
        words: the command line, the command first.

    Returns:
        Lines of at most 120 columns, or of the terminal's width where that is less.
    """
    command, options = words[0], options_of(words[0])
    entry = read_table()["commands"][command]
    columns = min(shutil.get_terminal_size((_MOST_COLUMNS, 24)).columns, _MOST_COLUMNS)
    lines = [f"kyon-pl {command}: {localized(entry['summary'])}", "", localized(f"usage: {entry['usage']}"), ""]
    lines += map(localized, _CONFIG_HELP)
    if entry["reads_settings"]:
        lines.append(localized(_CODE_HELP))
    pairs = zip(words, [*words[1:], ""], strict=True)
    wants_all = any(word == "--help=all" or (word in ("-h", "--help") and then == "all") for word, then in pairs)
    if wants_all or not entry["reads_settings"]:
        return "\n".join([*lines, *_listed(options, lambda option: _explained(option, columns))]) + "\n"
    trainer = [f"trainer.{key}" for key in _TRAINER]
    shown = {name: option for name, option in options.items() if not name.startswith(("trainer.", "model.lora."))}
    shown |= {name: options[name] for name in trainer if name in options}
    lines += _listed(shown, lambda option: [_in_one_line(option, columns)])
    lines += ["", localized(f"kyon-pl {command} --help all explains all {len(options)} settings, with their types.")]
    return "\n".join(lines) + "\n"


def _listed(options: dict[str, Option], lines_of: Callable[[Option], list[str]]) -> Iterator[str]:
    """The lines of options under the headings of their sections."""
    section = None
    for name, option in sorted(options.items(), key=lambda pair: _rank(pair[0])):
        if _rank(name) != section:
            section = _rank(name)
            yield from ("", localized(_HEADINGS.get(_section(name), "options:")))
        yield from lines_of(option)


def _section(name: str) -> str:
    first, dot, _ = name.partition(".")
    return first if first in _HEADINGS and (dot or first == "held_out") else ""


def _rank(name: str) -> int:
    return ["", *_HEADINGS].index(_section(name))


def _in_one_line(option: Option, columns: int) -> str:
    meaning = re.split(r"\. |。", localized(option.meaning))[0]
    line = f"  --{option.name:<{_NAME_WIDTH - 5}} {_cut(option.default_text, 16):<17} {meaning}"
    return _cut(line, columns)


def _cut(text: str, columns: int) -> str:
    if width(text) <= columns:
        return text
    while width(text) >= columns:
        text = text[:-1]
    return f"{text}…"


def _explained(option: Option, columns: int) -> list[str]:
    default = option.default_text if option.required else localized(f"default {option.default_text}")
    indent = " " * _NAME_WIDTH
    text = f"{localized(option.meaning)} ({option.takes()}; {default})".strip()
    if in_chinese():
        lines = [indent + line for line in wrapped(text, columns - _NAME_WIDTH)]
    else:
        lines = textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    name = f"  --{option.name}"
    return [name, *lines] if len(name) >= _NAME_WIDTH else [f"{name:<{_NAME_WIDTH}}{lines[0].lstrip()}", *lines[1:]]
