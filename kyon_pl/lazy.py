"""Public names of a package that are imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


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
