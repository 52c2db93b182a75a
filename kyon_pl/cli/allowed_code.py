"""Which code a setting may name: classes of this package, torch and Lightning, and of what `--allow_code` names.

A config is data, and importing a module runs it. jsonargparse therefore gets a list of the packages that a value may
name, which it compares with the text before it imports anything, and with the place where an object is defined after
that: `torch.os.system` is code of `os`. It also accepts functions, and `check_classes` does not.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pkgutil import resolve_name
from typing import Any

from kyon_pl.errors import SettingError

ORIGINS = ("kyon_pl", "torch", "lightning")
_TYPES_OF_SETTINGS = ("peft",)  # `model.lora` is a LoraConfig, and jsonargparse looks at its name too
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")


def take_allowed_code(words: list[str]) -> tuple[list[str], list[str]]:
    """Split off `--allow_code MODULE`, which may be repeated.

    No parser has the option: a config file cannot set it, and a saved config does not hold it.

    Args:
        words: the command and its options.

    Returns:
        The other words, and the modules.

    Raises:
        SettingError: a name that cannot be that of a module, or jsonargparse, whose settings are these checks.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--allow_code", action="append", default=[])
    try:
        options, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise SettingError("--allow_code", error.message, "Give the name of a module, such as my_package") from error
    for module in options.allow_code:
        if not all(part.isidentifier() for part in module.split(".")) or module.split(".")[0] == "jsonargparse":
            found = f"{module!r} is not a module whose classes can be used"
            raise SettingError("--allow_code", found, "Give the name of a module, such as my_package")
    return rest, options.allow_code


def restrict_imports(allowed: Iterable[str]) -> None:
    """Let jsonargparse import what settings name from `ORIGINS` and `allowed` only.

    Args:
        allowed: modules and packages, with all that is below them.
    """
    from jsonargparse import set_parsing_settings  # `--help` needs none of it

    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*ORIGINS, *_TYPES_OF_SETTINGS, *allowed],
        instantiate_subclass_spec_in_any=False,  # a class where any value is accepted has no base to be checked against
    )


def denied_code(where: str, text: str) -> SettingError | None:
    """The error for a class that jsonargparse has not imported; None for any other report of it.

    Args:
        where: the setting.
        text: the parser's report.
    """
    denied = _DENIED.search(text)
    return _other_origin(where, denied[1]) if denied else None


def _other_origin(where: str, path: str) -> SettingError:
    found = f"{path} is code of another package, and a setting may name classes of {', '.join(ORIGINS)} only"
    module = path.partition(".")[0]
    if module in sys.stdlib_module_names:  # nothing there trains a model
        return SettingError(where, found, "Remove it, and read the rest of that config before you use it")
    fix = (
        f"If you trust it, add --allow_code {module} to the command line. No config stores that: "
        "add it again to resume or validate the run"
    )
    return SettingError(where, found, fix)


def check_origins(where: str, value: Any, allowed: Iterable[str]) -> None:
    """Refuse classes of other packages by their text, for commands that import none.

    Args:
        where: the setting.
        value: of the setting: as in YAML, a class by its name, or mappings with `class_path`, alone or in a list.
        allowed: modules and packages besides `ORIGINS`.

    Raises:
        SettingError: it names the class.
    """
    accepted = (*ORIGINS, *_TYPES_OF_SETTINGS, *allowed)
    for place, path in _class_paths(where, value):
        if "." in path and not any(path.startswith(f"{origin}.") for origin in accepted):
            raise _other_origin(place, path)


def _class_paths(where: str, value: Any) -> Iterator[tuple[str, str]]:
    """The classes in a setting's value, each with its place."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield where, item
        for place, mapping in _mappings(where, item):
            if isinstance(path := mapping.get("class_path"), str):
                yield place, path


def _mappings(where: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping in a value, at any depth, with its place."""
    if isinstance(value, Mapping):
        yield where, value
        for key, inner in value.items():
            yield from _mappings(f"{where}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _mappings(where, inner)


def check_classes(settings: Mapping[str, Any]) -> None:
    """Refuse functions, before anything is instantiated.

    A setting of its own takes a class of its base, which the parser has checked. An argument of such a class that is
    called later, such as `LambdaCallback.init_args.on_fit_start`, takes nothing from a config.

    Args:
        settings: of one command, parsed, as plain mappings and lists.

    Raises:
        SettingError: it names the setting.
    """
    fix = "Write a class of the kind that the setting takes; kyon-pl fit --help all explains every setting"
    for where, mapping in _mappings("", settings):
        for key, value in mapping.items():
            place = f"{where}.{key}".removeprefix(".")
            items = value if isinstance(value, list) else [value]
            if place != "config" and any(callable(item) for item in items):  # it has paths that can be called
                raise SettingError(place, "a function or a bare class cannot be given by a setting", fix)
        if not isinstance(path := mapping.get("class_path"), str):
            continue
        found = resolve_name(path)
        nested = ".init_args." in where
        if not inspect.isclass(found) or (nested and issubclass(found, Callable)):  # type: ignore[arg-type]
            raise SettingError(where.removeprefix("."), f"{path} is called like a function", fix)
