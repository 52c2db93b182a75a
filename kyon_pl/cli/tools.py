"""The commands that do not train: each is a typed function, and its parameters are the options."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from types import NoneType
from typing import Literal, get_args, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from kyon_pl.cli.messages import explain
from kyon_pl.cli.options import SPELLINGS
from kyon_pl.cli.settings import config_name
from kyon_pl.errors import SettingError

GpuName = Literal["t4", "3090", "4090", "a100-40", "a100-80", "h100", "h200"]
"""GPUs that `doctor` knows, as in `kyon_pl.doctor.speed`, which imports torch."""


def run_preview(words: list[str]) -> None:
    """Run `preview` with its options and the settings of fit.

    Args:
        words: the command and its options.

    Raises:
        SettingError: a key or value that the parser does not take.
        KyonError: whatever `preview` refuses.
    """
    from kyon_pl.cli.arguments import add_settings, parse_settings
    from kyon_pl.data.dialogue_data import DialogueData
    from kyon_pl.preview.command import preview

    parser = ArgumentParser(prog="kyon-pl preview", exit_on_error=False, allow_abbrev=False)
    add_preview_options(parser)
    add_settings(parser, types={})
    settings = parse_settings(parser, words, types={})
    preview(DialogueData(**settings.data.as_dict()), settings.rows, settings.png, settings_of_fit(words[1:]))


def add_preview_options(parser: ArgumentParser) -> None:
    """Add the options that only `preview` has.

    Args:
        parser: to add to.
    """
    from kyon_pl.preview.command import preview

    parser.add_function_arguments(preview, skip={"data", "given"})


def settings_of_fit(words: list[str]) -> list[str]:
    """The words of `preview` that `fit` takes, too: all but `--rows` and `--png`; configs of the package by name.

    Args:
        words: the options.
    """
    kept, skipped = list[str](), False
    for word in map(config_name, words):
        option, has_value, _ = word.partition("=")
        if not skipped and option not in ("--rows", "--png"):
            kept.append(word)
        skipped = option in ("--rows", "--png") and not has_value
    return kept


def run_doctor(words: list[str]) -> None:
    """Run `doctor` with its options and the settings of fit.

    Args:
        words: the command and its options.

    Raises:
        SettingError: a key or value that the parser does not take.
        MachineError: `kyon-pl` is not installed.
        SystemExit: status 1 if something is missing.
    """
    from kyon_pl.doctor.command import doctor

    with_config = any(word.partition("=")[0] != "--json" for word in words[1:])
    doctor(lambda: doctor_settings(words), as_json="--json" in words, with_config=with_config)


def doctor_settings(words: list[str]) -> Namespace:
    """The options of `doctor` and the settings of fit.

    Args:
        words: the command and its options.

    Raises:
        SettingError: a key or value that the parser does not take.
    """
    from peft import LoraConfig

    from kyon_pl.cli.arguments import add_settings, parse_settings

    types = {"model.lora": LoraConfig | None}
    parser = ArgumentParser(prog="kyon-pl doctor", exit_on_error=False, allow_abbrev=False)
    add_doctor_options(parser)
    add_settings(parser, types)
    settings = parse_settings(parser, words, types)
    if settings.gpu_gib is not None and not settings.gpu_gib > 0:
        raise SettingError("--gpu_gib", str(settings.gpu_gib), "Give the memory of a GPU in GiB, such as 16")
    return settings


def add_doctor_options(parser: ArgumentParser) -> None:
    """Add the options that only `doctor` has.

    Args:
        parser: to add to.
    """
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--gpu", type=GpuName | None, default=None, help="a GPU of another machine to plan for")
    parser.add_argument(
        "--gpu_gib", type=float | None, default=None, help="memory of a GPU of another machine to plan for, in GiB"
    )


def run_import_role(words: list[str]) -> None:
    """Run `import-role` with its options; the file comes before them."""
    from kyon_pl.roles.importing.command import import_role

    is_first = len(words) > 1 and not words[1].startswith("-")
    run_function(import_role, [words[0], "--file", *words[1:]] if is_first else words)


def run_build_data(words: list[str]) -> None:
    """Run `build-data` with its options."""
    from kyon_pl.roles.build import build_data

    run_function(build_data, words)


def run_chat(words: list[str]) -> None:
    """Run `chat` with its options; `--json` and `--compare` need no value."""
    from kyon_pl.chat.command import chat

    run_function(chat, flags_as_values(words, ("--json", "--compare")))


def run_web(words: list[str]) -> None:
    """Run `web` with its options; `--compare` and `--ask_password` need no value."""
    from kyon_pl.chat.web.app import web

    run_function(web, flags_as_values(words, ("--compare", "--ask_password")))


def run_report(words: list[str]) -> None:
    """Run `report` with its options; the run folders come before them."""
    from kyon_pl.evaluation.report import report

    first_option = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    runs = ["--runs", json.dumps(words[1:first_option])] if first_option > 1 else []
    run_function(report, [words[0], *runs, *words[first_option:]])


def run_judge(words: list[str]) -> None:
    """Run `judge` with its options."""
    from kyon_pl.judge.command import judge

    run_function(judge, words)


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

    run_function(push, flags_as_values(words, ("--dry_run",)))


def flags_as_values(words: list[str], flags: tuple[str, ...]) -> list[str]:
    """Add `=true` to each flag that no value follows.

    Args:
        words: the command and its options.
        flags: options that may be given without a value.
    """
    words = [SPELLINGS.get(word, word) for word in words]
    pairs = zip(words, [*words[1:], "-"], strict=True)
    return [f"{word}=true" if word in flags and following[:1] == "-" else word for word, following in pairs]


def run_function(function: Callable[..., None], words: list[str]) -> None:
    """Run a typed function as a command.

    Args:
        function: its parameters are the options, and its docstring in Google's style explains them.
        words: the command and its options.

    Raises:
        SettingError: an option or value that the function does not take.
        KyonError: whatever the function refuses.
    """
    parser = ArgumentParser(prog=f"kyon-pl {words[0]}", exit_on_error=False, allow_abbrev=False)
    parser.add_function_arguments(function, as_positional=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a YAML file with the options below")
    try:
        settings = parser.parse_args(words[1:])
    except argparse.ArgumentError as error:
        raise explain(error, words) from error
    values = {key: value for key, value in settings.as_dict().items() if key != "config"}
    refuse_null(function, values)
    function(**values)


def refuse_null(function: Callable[..., None], values: dict[str, object]) -> None:
    """Refuse null for a parameter that is never None; the parser accepts it for any.

    Args:
        function: whose parameters these are.
        values: by the name of the parameter.

    Raises:
        SettingError: a value is None, and its type is not optional.
    """
    for name, hint in get_type_hints(function).items():
        if values.get(name, ...) is None and NoneType not in get_args(hint):
            raise SettingError(f"--{name}", "null", "Give it a value, or leave it out for its default")
