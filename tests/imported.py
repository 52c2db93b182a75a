"""What a command imports, in a process of its own."""

from __future__ import annotations

import ast
import subprocess
import sys

OPTIONAL = ("lightning", "bitsandbytes", "scipy", "sklearn", "torchmetrics")
"""Packages that take long to import and that not every command needs."""


def imported_by(words: list[str], *packages: str, status: int = 0) -> list[str]:
    """Those of some packages that a command has imported when it ends.

    Args:
        words: the command and its options.
        packages: to look for.
        status: that the command has to end with.
    """
    code = (
        "import atexit, sys, kyon_pl.cli\n"
        f"atexit.register(lambda: print([name for name in {packages!r} if name in sys.modules], file=sys.stderr))\n"
        f"kyon_pl.cli.main({words!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == status, run.stderr
    imported: list[str] = ast.literal_eval(run.stderr.strip().splitlines()[-1])
    return imported
