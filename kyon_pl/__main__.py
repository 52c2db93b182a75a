"""`python -m kyon_pl` is `kyon-pl`."""

from kyon_pl.cli import main

if __name__ == "__main__":
    main()
