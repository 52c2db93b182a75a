"""Lazy imports of public names, and checks for packages of extras."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from kyon_pl.errors import MachineError


def public_name(package: str, homes: Mapping[str, str], name: str) -> Any:
    """Import a public name of a package on first use, for the package's `__getattr__`.

    Args:
        package: name of the package.
        homes: the module of each public name.
        name: the requested name.

    Raises:
        AttributeError: the package has no such public name.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(homes[name]), name)


def need_package(package: str, extra: str, *, where: str, does: str, otherwise: str = "") -> None:
    """Check that an optional package is installed, before the work that needs it.

    Args:
        package: import name of the package.
        extra: extra of kyon-pl that installs it.
        where: the command or setting that needs it.
        does: what the package does there, as a predicate: "draws the pictures".
        otherwise: a sentence that says what to do without it.

    Raises:
        MachineError: the package is not installed.
    """
    if find_spec(package) is None:
        found = f"{package.replace('_', '-')} {does}, but it is not installed"
        fix = f"Install it with: pip install 'kyon-pl[{extra}]'"
        raise MachineError(where, found, f"{fix}. {otherwise}" if otherwise else f"{fix}.")
