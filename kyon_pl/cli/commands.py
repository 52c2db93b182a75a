"""The entry point of `kyon-pl`: finds the command, answers `--help`, and checks the names of options and keys.

Heavy imports follow only then.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kyon_pl import __version__
from kyon_pl.cli.options import check_keys, check_option_names, check_option_values, help_text, wants_help
from kyon_pl.cli.settings import config_files, names, read_config_file, with_named_configs
from kyon_pl.cli.streams import STDOUT, require_stdout, set_up_streams
from kyon_pl.cli.system_errors import explain_system_error, print_traceback, report_fault
from kyon_pl.doctor.packages import refuse_malicious_releases
from kyon_pl.errors import KyonError, SettingError
from kyon_pl.language import LANGUAGES, VARIABLE, localized
from kyon_pl.logs import LEVELS, quiet_libraries, replace_control_characters, set_up_logging

if TYPE_CHECKING:
    from collections.abc import Callable

# name -> (what it does, module:function that runs it); the module is imported when the command runs
COMMANDS = {
    "fit": ("train an adapter:  kyon-pl fit --config configs/lora.yaml", "kyon_pl.cli.lightning_cli:run_trainer"),
    "validate": ("loss and perplexity of a checkpoint on the validation rows", "kyon_pl.cli.lightning_cli:run_trainer"),
    "test": ("loss and perplexity of a checkpoint on the test rows", "kyon_pl.cli.lightning_cli:run_trainer"),
    "predict": ("write the replies of a checkpoint as JSONL", "kyon_pl.cli.lightning_cli:run_trainer"),
    "chat": ("chat with a fine-tuned model, by default the newest run's:  kyon-pl chat", "kyon_pl.cli.tools:run_chat"),
    "web": (
        "chat on a page in the browser, needs kyon-pl[web]:  kyon-pl web --characters roles",
        "kyon_pl.cli.tools:run_web",
    ),
    "import-role": (
        "make a role from a card, chat log, table or novel:  kyon-pl import-role card.png --output roles/bo",
        "kyon_pl.cli.tools:run_import_role",
    ),
    "build-data": (
        "make rows from dialogues and role folders:  kyon-pl build-data --characters roles/bo --output rows.parquet",
        "kyon_pl.cli.tools:run_build_data",
    ),
    "push": (
        "upload an adapter with a model card to the Hub:  kyon-pl push --repo_id NAME",
        "kyon_pl.cli.tools:run_push",
    ),
    "preview": (
        "show rows as the model sees them:  kyon-pl preview --config configs/lora.yaml",
        "kyon_pl.cli.tools:run_preview",
    ),
    "report": (
        "report runs as HTML and Markdown:  kyon-pl report lightning_logs/version_0",
        "kyon_pl.cli.tools:run_report",
    ),
    "judge": (
        "compare the replies of two models, judged by you or by a model:  kyon-pl judge",
        "kyon_pl.cli.tools:run_judge",
    ),
    "merge": (
        "merge an adapter into its base:  kyon-pl merge --format glm --output merged",
        "kyon_pl.cli.tools:run_merge",
    ),
    "convert-adapter": (
        "convert an adapter to transformers' GLM, or back:  kyon-pl convert-adapter --to glm --output converted",
        "kyon_pl.cli.tools:run_convert_adapter",
    ),
    "doctor": (
        "check whether a config can run on this machine:  kyon-pl doctor --config configs/lora.yaml",
        "kyon_pl.cli.tools:run_doctor",
    ),
}
HELP = """kyon-pl {version}: fine-tune ChatGLM2-6B into a character

usage: kyon-pl COMMAND [--config FILE_OR_NAME] [--KEY VALUE ...]

commands:
{commands}

Every setting is a key of the YAML file and an option of the same name (--data.source rows.jsonl).
  kyon-pl fit --help            the settings, one line each; --help all explains every one
  kyon-pl fit --print_config    all settings with their values, as a YAML file to start from

Configs by name; of several --config, the last one wins:
  {configs}

for every command:
  --log_level LEVEL    lowest level shown in the terminal: {levels}; run.log in the run folder has all
  --debug              show all levels, and the traceback of an error
"""
NUMBERS = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"),  # torchrun
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS"),
    *("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"),
)
"""Environment variables that torch, Lightning and huggingface_hub convert to integers."""
log = logging.getLogger(__name__)


def main(args: list[str] | None = None) -> None:
    """Run one command.

    Args:
        args: the command and its options; by default, those of this process.

    Raises:
        SystemExit: status 2 after a `KyonError`, or an error of the machine or its files, which is printed as one
            paragraph on standard error; 130 after Ctrl-C; 141 if the reader of the output has gone.
    """
    words = sys.argv[1:] if args is None else args
    set_up_streams()
    check_environment()
    set_up_logging()
    sys.excepthook = report_fault
    try:
        try:
            run_command(words)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        end(interrupt, "interrupted", 130, words)
    except (KyonError, OSError, UnicodeError, MemoryError, ImportError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and error.filename == STDOUT:  # `| head`: nobody reads on
            end(error, None, 141, words)
        explained = explain_system_error(error)
        if explained is None:
            raise
        end(error, explained, 2, words)


def end(error: BaseException, message: object, status: int, words: list[str]) -> NoReturn:
    """Log why a command ends, and exit.

    Args:
        error: the reason; its traceback is printed with `--debug`.
        message: what to log; None: nothing.
        status: exit status.
        words: the command line.

    Raises:
        SystemExit: always.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error for each worker that it ends
    if "--debug" in words:
        print_traceback(error)
    if message is not None:
        log.error("kyon-pl %s: %s", next((word for word in words if word in COMMANDS), words[0]), message)
    require_stdout(False)  # what is still buffered cannot be written either
    sys.unraisablehook = ignore  # destructors of half-made objects fail as a consequence
    raise SystemExit(status) from None


def ignore(unraisable: object) -> None:
    """A `sys.unraisablehook` that prints nothing."""


def run_command(words: list[str]) -> None:
    """Answer `--help` and `--version`, or check the names of options and run the command.

    Args:
        words: the command and its options.

    Raises:
        KyonError: whatever the command refuses.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_of_commands(), end="")
        return
    if words[0] == "--version":
        print("kyon-pl", __version__)
        return
    words, level = take_log_options(words)
    set_up_logging(level)
    check_command(words[0])
    if wants_help(words):
        print(help_text(words), end="")
        return
    words = with_named_configs(words)
    check_names(words)
    # torch reads this when it is imported: on a busy machine, threads that spin while they wait for each other make
    # a step of a small model ten times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    run = load_command(words[0])
    quiet_libraries(level)
    run(words)


def help_of_commands() -> str:
    """What `kyon-pl --help` prints."""
    lines = []
    for name, (text, _) in COMMANDS.items():
        said, gap, example = text.partition(":  ")
        lines.append(f"  {name:<17}{localized(said)}{localized(gap)}{example}")
    commands = "\n".join(lines)
    configs, levels = ", ".join(names()), ", ".join(LEVELS)
    return localized(HELP).format(version=__version__, commands=commands, configs=configs, levels=levels)


def check_environment() -> None:
    """Refuse a language that there is not, and variables that are no numbers, but are converted by libraries on import.

    Raises:
        SystemExit: status 2, after one paragraph on standard error; ranks, and so the log, are among these variables.
    """
    for name in NUMBERS:
        if name in os.environ and not os.environ[name].isdecimal():
            found = f"{os.environ[name][:80]!r} is not a number"
            _refuse_variable(name, found, "Correct or unset this environment variable")
    if (chosen := os.environ.get(VARIABLE)) and chosen not in LANGUAGES:
        found = f"there is no language {chosen[:80]!r} here"
        _refuse_variable(VARIABLE, found, f"Use one of: {', '.join(LANGUAGES)}")


def _refuse_variable(name: str, found: str, fix: str) -> NoReturn:
    error = SettingError(f"${name}", found, fix)
    print(f"kyon-pl: {replace_control_characters(localized(error))}", file=sys.stderr)
    raise SystemExit(2)


def take_log_options(words: list[str]) -> tuple[list[str], str]:
    """Split off the options that every command has.

    Args:
        words: the command line.

    Returns:
        The other words, and the lowest level shown in the terminal, one of `LEVELS`.

    Raises:
        SettingError: a level that does not exist, or no command.
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
    return rest, "debug" if options.debug else options.log_level


def check_command(name: str) -> None:
    """Refuse a command that does not exist.

    Args:
        name: of the command.

    Raises:
        KyonError: it names the closest command.
    """
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        fix = f"Did you mean '{close[0]}'?" if close else f"Use one of: {', '.join(COMMANDS)}."
        raise KyonError(where=f"command '{name}'", found="there is no such command", fix=fix)


def check_names(words: list[str]) -> None:
    """Refuse unknown options and unknown keys of config files.

    Args:
        words: the command and its options.

    Raises:
        SettingError: an unknown name, a text that no setting can hold, or a file that is not YAML.
    """
    check_option_names(words)
    check_option_values(words)
    for file in map(Path, config_files(words)):
        check_keys(words[0], file, read_config_file(file))


def load_command(name: str) -> Callable[[list[str]], None]:
    """Import the function that runs a command.

    Args:
        name: of the command.

    Raises:
        MachineError: an installed dependency is a release that is known to steal credentials.
    """
    if name != "doctor":  # which reports it in detail
        refuse_malicious_releases()
    module, _, function = COMMANDS[name][1].partition(":")
    run: Callable[[list[str]], None] = getattr(importlib.import_module(module), function)
    return run
