"""The configs that come with the package, by name: `--config lora` wherever one stands."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"  # in a clone a link to configs/
_OPTIONS = ("--config", "-c")


def names() -> list[str]:
    """Of all of them, such as `lora` and `overlay/ddp`."""
    return sorted(file.relative_to(CONFIGS).with_suffix("").as_posix() for file in CONFIGS.rglob("*.yaml"))


def with_named_configs(words: list[str]) -> list[str]:
    """A command line with the paths of the configs that it names.

    What is a file where one stands is that file. What is none, but is the name of a config of the package, also as
    `configs/NAME.yaml`, is that config. Everything else stays as it is, for the parser to refuse.

    Args:
        words: of the command line.
    """
    found = [_path(word) if before in _OPTIONS else word for before, word in pairwise(["", *words])]
    joined = f"{_OPTIONS[0]}="
    return [joined + _path(word.removeprefix(joined)) if word.startswith(joined) else word for word in found]


def _path(word: str) -> str:
    name = word.removeprefix("configs/").removesuffix(".yaml")
    return str(CONFIGS / f"{name}.yaml") if name in names() and not Path(word).is_file() else word
