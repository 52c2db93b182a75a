"""Whether a run can work on this machine: `kyon-pl doctor`, and the check at the start of every run.

Importing this package imports no other library: the versions of the libraries are checked first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kyon_pl.imports import public_name

if TYPE_CHECKING:
    from kyon_pl.doctor.device import check_precision, check_run

__all__ = ["check_precision", "check_run"]


def __getattr__(name: str) -> Any:
    return public_name(__name__, dict.fromkeys(__all__, "kyon_pl.doctor.device"), name)
