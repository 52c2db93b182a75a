"""Whether a run can work on this machine: `kyon-pl doctor`, and the check that every run begins with.

Importing this costs nothing, and imports no library whose version is still to be looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kyon_pl.doctor.check import check_run

__all__ = ["check_run"]


def __getattr__(name: str) -> Any:
    if name != "check_run":
        raise AttributeError(f"module 'kyon_pl.doctor' has no attribute {name!r}")
    from kyon_pl.doctor.check import check_run

    return check_run
