"""Packages that only an extra of this package brings, such as matplotlib by `kyon-pl[report]`."""

from __future__ import annotations

from importlib.util import find_spec

from kyon_pl.errors import MachineError


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
