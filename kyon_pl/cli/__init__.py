"""The command line: `kyon-pl`."""

from kyon_pl.cli.commands import main

__all__ = ["main"]
