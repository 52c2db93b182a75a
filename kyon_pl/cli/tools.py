"""The commands that are typed functions, and the parser that they share with fit."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from kyon_pl.cli.messages import explain_words
from kyon_pl.cli.settings import check_config_files


def run_preview(args: list[str] | None) -> None:
    """Parse the options of `preview` and run it.

    Args:
        args: the command and its options; unset, those of this process.

    Raises:
        SettingError: a key or value that the parser does not take.
        KyonError: whatever `preview` refuses.
    """
    from lightning.pytorch.cli import LightningArgumentParser

    from kyon_pl.cli.arguments import add_fit_arguments
    from kyon_pl.cli.messages import explain
    from kyon_pl.data.dialogue_data import DialogueData
    from kyon_pl.preview.command import preview

    description = "Rows as the model sees them. Takes the YAML and the options of fit."
    parser = LightningArgumentParser(
        prog="kyon-pl preview", description=description, exit_on_error=False, allow_abbrev=False
    )
    parser.add_function_arguments(preview, skip={"data"})
    add_fit_arguments(parser)
    words = sys.argv[1:] if args is None else args
    check_config_files(words)
    try:
        settings = parser.parse_args(words[1:])
    except argparse.ArgumentError as error:
        raise explain(error, args) from error
    preview(DialogueData(**settings.data.as_dict()), rows=settings.rows, png=settings.png)


def run_build_data(words: list[str]) -> None:
    """Run `build-data` with its options."""
    from kyon_pl.roles.build import build_data

    run_function(build_data, words)


def run_chat(words: list[str]) -> None:
    """Run `chat` with its options; `-p` is `--prompt`, `--json` and `--compare` need no value."""
    from kyon_pl.chat.command import chat

    words = ["--prompt" if word == "-p" else word for word in words]
    run_function(chat, flags_as_values(words, ("--json", "--compare")))


def run_web(words: list[str]) -> None:
    """Run `web` with its options; `--compare` and `--ask_password` need no value."""
    from kyon_pl.chat.web import web

    run_function(web, flags_as_values(words, ("--compare", "--ask_password")))


def run_report(words: list[str]) -> None:
    """Run `report`; the run folders stand before the options."""
    from kyon_pl.evaluation.report import report

    first_option = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    runs = ["--runs", json.dumps(words[1:first_option])] if first_option > 1 else []
    run_function(report, [words[0], *runs, *words[first_option:]])


def run_merge(words: list[str]) -> None:
    """Run `merge` with its options."""
    from kyon_pl.export.merge import merge

    run_function(merge, words)


def run_convert_adapter(words: list[str]) -> None:
    """Run `convert-adapter` with its options."""
    from kyon_pl.export.convert_adapter import convert_adapter

    run_function(convert_adapter, words)


def run_push(words: list[str]) -> None:
    """Run `push` with its options; `--dry-run` needs no value."""
    from kyon_pl.publish.push import push

    words = ["--dry_run" if word == "--dry-run" else word for word in words]
    run_function(push, flags_as_values(words, ("--dry_run",)))


def flags_as_values(words: list[str], flags: tuple[str, ...]) -> list[str]:
    """Options that are true where no value stands behind them."""
    pairs = zip(words, [*words[1:], "-"], strict=True)
    return [f"{word}=true" if word in flags and then[:1] == "-" else word for word, then in pairs]


def run_function(function: Callable[..., None], words: list[str]) -> None:
    """Run a typed function as a command: its parameters are the options, its docstring explains them.

    Args:
        function: documented in Google's style; what it returns is not looked at.
        words: the command's name and its options.

    Raises:
        SettingError: an option or value that the function does not take.
        KyonError: whatever the function refuses.
    """
    summary = (function.__doc__ or "").partition("\n")[0]
    parser = ArgumentParser(prog=f"kyon-pl {words[0]}", description=summary, exit_on_error=False, allow_abbrev=False)
    parser.add_function_arguments(function, as_positional=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a YAML file with the options below")
    check_config_files(words)
    try:
        settings = parser.parse_args(words[1:])
    except argparse.ArgumentError as error:
        known = [name for name in parser.get_defaults().keys() if name != "config"]  # noqa: SIM118 (a Namespace)
        raise explain_words(error, words, lambda: known, words[0]) from error
    function(**{key: value for key, value in settings.as_dict().items() if key != "config"})
