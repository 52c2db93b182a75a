"""Imports at first use: public names of a package, and packages that only an extra installs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from kyon_pl.errors import MachineError


def public_name(package: str, homes: Mapping[str, str], name: str) -> Any:
    """What a package's `__getattr__` answers.

    Args:
        package: that is asked.
        homes: the module that defines each public name.
        name: that is asked for.

    Raises:
        AttributeError: it is none of them.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(homes[name]), name)


def need_package(package: str, extra: str, *, where: str, does: str, otherwise: str = "") -> None:
    """Refuse to begin what a package is needed for, before the work and not in the middle of it.

    Args:
        package: as it is imported.
        extra: of this package, which brings it.
        where: the command or setting that needs it.
        does: what it does there, behind its name.
        otherwise: what to do without it, a sentence.

    Raises:
        MachineError: it is not installed.
    """
    if find_spec(package) is None:
        found = f"{package.replace('_', '-')} {does}, and it is not installed"
        raise MachineError(where, found, f"Install it with: pip install 'kyon-pl[{extra}]'. {otherwise}".strip())
