"""The configs that come with the package, by name: `--config lora` wherever one stands."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from kyon_pl.errors import SettingError

CONFIGS = Path(__file__).parent / "configs"  # in a clone a link to configs/


def names() -> list[str]:
    """Of all of them, such as `lora` and `overlay/ddp`."""
    return sorted(file.relative_to(CONFIGS).with_suffix("").as_posix() for file in CONFIGS.rglob("*.yaml"))


def with_named_configs(words: list[str]) -> list[str]:
    """A command line with the paths of the configs that it names.

    What is a file where one stands is that file. What is none, but is the name of a config of the package, also as
    `configs/NAME.yaml`, is that config. A YAML file that is not there is refused at once, before the seconds that a
    parser's imports take; everything else stays as it is, for the parser to refuse.

    Args:
        words: of the command line.

    Raises:
        SettingError: there is no such YAML file.
    """
    found = list(words)
    for place, option, file in _configs(words):
        found[place] = option + _path(file)
    return found


def config_files(words: list[str]) -> list[str]:
    """What a command line names as configs, in any of a parser's spellings.

    Args:
        words: of the command line.
    """
    return [file for _, _, file in _configs(words)]


def _configs(words: list[str]) -> Iterator[tuple[int, str, str]]:
    """The place of each word that names a config, what stands before the name in it, and the name."""
    for place, word in enumerate(words):
        if word in ("--config", "-c"):
            if place + 1 < len(words):
                yield place + 1, "", words[place + 1]
        elif match := re.match("--config=|-c=?", word):
            yield place, match[0], word[match.end() :]


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
