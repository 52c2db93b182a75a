"""`python -m kyon_pl` is `kyon-pl`."""

from kyon_pl.cli import main

main()
