"""The configs that come with the package, by name: `--config lora` wherever one stands."""

from __future__ import annotations

import difflib
from itertools import pairwise
from pathlib import Path

from kyon_pl.errors import SettingError

CONFIGS = Path(__file__).parent / "configs"  # in a clone a link to configs/
_OPTIONS = ("--config", "-c")


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
    found = [_path(word) if before in _OPTIONS else word for before, word in pairwise(["", *words])]
    joined = f"{_OPTIONS[0]}="
    return [joined + _path(word.removeprefix(joined)) if word.startswith(joined) else word for word in found]


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
