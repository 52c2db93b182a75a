"""The command line: LightningCLI for fit, validate, test and predict, under one door that answers at once."""

from __future__ import annotations

import difflib
import sys
from typing import TYPE_CHECKING

from kyon_pl import __version__
from kyon_pl.errors import KyonError
from kyon_pl.logs import set_up_logging

if TYPE_CHECKING:
    from collections.abc import Callable

COMMANDS = {
    "fit": "train an adapter:  kyon-pl fit --config configs/lora.yaml",
    "validate": "loss and perplexity of a checkpoint on the validation rows",
    "test": "the same on the test rows",
    "predict": "write the replies of a checkpoint as JSONL",
    "preview": "show rows as the model sees them:  kyon-pl preview --config configs/lora.yaml",
}
HELP = f"""kyon-pl {__version__}: fine-tune ChatGLM2-6B into a character

usage: kyon-pl COMMAND [--config FILE] [--KEY VALUE ...]

commands:
{chr(10).join(f"  {name:<10}{text}" for name, text in COMMANDS.items())}

Every setting is a key of the YAML file and an option of the same name (--data.source rows.jsonl).
  kyon-pl fit --help            all of them, explained
  kyon-pl fit --print_config    all of them with their values, as a file to start from
"""


def main(args: list[str] | None = None) -> None:
    """Run one command.

    Args:
        args: the words after `kyon-pl`; unset, those of this process.

    Raises:
        SystemExit: status 2 after an error that the user can mend, which stands in one paragraph on standard error.
    """
    words = sys.argv[1:] if args is None else args
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if words[0] == "--version":
        print(f"kyon-pl {__version__}")
        return
    try:
        command(words[0])(args)
    except KyonError as error:
        print(f"kyon-pl {words[0]}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def command(name: str) -> Callable[[list[str] | None], None]:
    """The function behind a command's name; heavy imports happen here and not before.

    Raises:
        KyonError: no command of that name.
    """
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        fix = f"Did you mean '{close[0]}'?" if close else f"Use one of: {', '.join(COMMANDS)}."
        raise KyonError(where=f"command '{name}'", found="there is no such command", fix=fix)
    from kyon_pl.run import run_trainer
    from kyon_pl.tools import run_preview

    set_up_logging()  # after the imports: Lightning sets the level of its own log when it is imported

    return run_preview if name == "preview" else run_trainer
