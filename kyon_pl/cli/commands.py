"""The command line: LightningCLI for fit, validate, test and predict, under one door that answers at once."""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING

from kyon_pl import __version__
from kyon_pl.cli.settings import names, with_named_configs
from kyon_pl.doctor.packages import refuse_malicious_releases
from kyon_pl.errors import KyonError, SettingError
from kyon_pl.logs import LEVELS, quiet_libraries, set_up_logging

if TYPE_CHECKING:
    from collections.abc import Callable

# name -> what it does, and where the function is that takes its words; what stands there is imported when it is asked
# for
COMMANDS = {
    "fit": ("train an adapter:  kyon-pl fit --config configs/lora.yaml", "kyon_pl.cli.lightning_cli:run_trainer"),
    "validate": ("loss and perplexity of a checkpoint on the validation rows", "kyon_pl.cli.lightning_cli:run_trainer"),
    "test": ("the same on the test rows", "kyon_pl.cli.lightning_cli:run_trainer"),
    "predict": ("write the replies of a checkpoint as JSONL", "kyon_pl.cli.lightning_cli:run_trainer"),
    "chat": ("talk to a tuned model, the newest run's if none is named:  kyon-pl chat", "kyon_pl.cli.tools:run_chat"),
    "web": (
        "the same on a page in the browser, needs kyon-pl[web]:  kyon-pl web --characters roles",
        "kyon_pl.cli.tools:run_web",
    ),
    "build-data": (
        "dialogues and role folders to rows:  kyon-pl build-data --characters roles/bo --output rows.parquet",
        "kyon_pl.cli.tools:run_build_data",
    ),
    "push": (
        "an adapter to the Hub, with a model card:  kyon-pl push --repo_id NAME",
        "kyon_pl.cli.tools:run_push",
    ),
    "preview": (
        "show rows as the model sees them:  kyon-pl preview --config configs/lora.yaml",
        "kyon_pl.cli.tools:run_preview",
    ),
    "report": (
        "runs as Markdown and pictures:  kyon-pl report lightning_logs/version_0",
        "kyon_pl.cli.tools:run_report",
    ),
    "merge": (
        "an adapter added into its base, a model of its own:  kyon-pl merge --format glm --output merged",
        "kyon_pl.cli.tools:run_merge",
    ),
    "convert-adapter": (
        "an adapter for transformers' GlmForCausalLM, or back:  kyon-pl convert-adapter --to glm --output converted",
        "kyon_pl.cli.tools:run_convert_adapter",
    ),
    "doctor": (
        "what this machine has, what a config needs, what is missing:  kyon-pl doctor --config configs/lora.yaml",
        "kyon_pl.doctor.command:run_doctor",
    ),
}
HELP = f"""kyon-pl {__version__}: fine-tune ChatGLM2-6B into a character

usage: kyon-pl COMMAND [--config FILE_OR_NAME] [--KEY VALUE ...]

commands:
{chr(10).join(f"  {name:<17}{text}" for name, (text, _) in COMMANDS.items())}

Every setting is a key of the YAML file and an option of the same name (--data.source rows.jsonl).
  kyon-pl fit --help            all of them, explained
  kyon-pl fit --print_config    all of them with their values, as a file to start from

Configs by name, wherever you are; --config may be given again, the last on top:
  {", ".join(names())}

with every command:
  --log_level LEVEL    what the terminal shows: {", ".join(LEVELS)}; run.log in the run folder has it all
  --debug              all lines, and the traceback of an error
"""
log = logging.getLogger(__name__)


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
    set_up_logging()
    debug = False
    try:
        words, level, debug = take_log_options(words)
        set_up_logging(level)
        words = with_named_configs(words)  # before the imports, which take seconds
        # read when torch is imported: on a busy machine, threads that spin while they wait for each other make a small
        # model's step ten times slower
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        run = command(words[0])
        quiet_libraries(level)
        run(words)
    except KyonError as error:
        if debug:
            traceback.print_exc()
        log.error("kyon-pl %s: %s", words[0], error)
        raise SystemExit(2) from None


def take_log_options(words: list[str]) -> tuple[list[str], str, bool]:
    """The options that every command has, taken out of its words.

    Returns:
        the other words; the level of the terminal's lines, one of `LEVELS`; whether to show tracebacks.

    Raises:
        SettingError: a level that does not exist, or a command that stands behind its options.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--log_level", choices=LEVELS, default="info")
    try:
        options, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise SettingError("--log_level", error.message, f"Use one of: {', '.join(LEVELS)}") from error
    if not rest:
        raise SettingError("command line", "there is no command", f"Use one of: {', '.join(COMMANDS)}")
    return rest, "debug" if options.debug else options.log_level, options.debug


def command(name: str) -> Callable[[list[str]], None]:
    """The function behind a command's name; heavy imports happen here and not before.

    Raises:
        KyonError: no command of that name.
        MachineError: a dependency is installed in a release that is known to steal credentials.
    """
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        fix = f"Did you mean '{close[0]}'?" if close else f"Use one of: {', '.join(COMMANDS)}."
        raise KyonError(where=f"command '{name}'", found="there is no such command", fix=fix)
    if name != "doctor":  # which says more about it
        refuse_malicious_releases()
    module, _, function = COMMANDS[name][1].partition(":")
    run: Callable[[list[str]], None] = getattr(importlib.import_module(module), function)
    return run
