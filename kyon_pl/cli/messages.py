"""Errors of the parser and of Lightning's Trainer as one paragraph each."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from kyon_pl.cli.settings import REMOTE_CODE, config_files, names, no_remote_code
from kyon_pl.data import DialogueDataModule
from kyon_pl.errors import SettingError
from kyon_pl.training import ChatGLM2LoRA


def explain_words(
    error: argparse.ArgumentError, words: list[str], known: Callable[[], list[str]], helper: str = "fit"
) -> SettingError:
    """One paragraph out of the parser's report.

    Args:
        error: what it raised.
        words: what it was given.
        known: the names of all settings.
        helper: the command whose --help explains them.
    """
    text = str(error)
    where = key[1] if (key := re.search(r'Parser key "([^"]+)"', text)) else "command line"
    if unknown := re.search(
        r"[Oo]ption '([^']+)' is not accepted|accept option '([^']+)'|[Uu]nrecognized arguments: (\S+)", text
    ):
        name = next(group for group in unknown.groups() if group).lstrip("-").split("=")[0]
        full = f"{where}.{name}" if key else name
        if full.rpartition(".")[2] == REMOTE_CODE:
            return no_remote_code(full)
        return SettingError(full, "there is no such setting", _suggestion(full, known(), helper))
    lines = [line.strip(" -") for line in text.splitlines()]
    boring: tuple[str, ...] = (
        "Parser key",
        "Does not validate",
        "Subtypes",
        "Errors:",
        "Given value type",
        "Problem with given class_path",
    )
    if len(keys := re.findall(r'Parser key "([^"]+)"', text)) > 1:  # of a class among the settings
        where = f"{where}.init_args.{keys[-1]}"
        boring += ("Type ", "Expected a path", "Expected a dot import path")
    said = [line for line in lines if line and not line.startswith(boring) and "NoneType" not in line]
    found = "; ".join(said).partition(". Got value: Namespace(")[0] if said else text
    if "Problems parsing config" in text:
        return SettingError(
            ", ".join(config_files(words)), f"not YAML: {found.split(': ', 1)[-1]}", "Correct the file at that line"
        )
    if where == "config" or "File does not exist" in text:
        fix = f"Give the path of a YAML file, or one of the names {', '.join(names())}"
        return SettingError("--config", text.split(": ", 1)[-1].rstrip("."), fix)
    return SettingError(where, found.rstrip("."), f"kyon-pl {helper} --help explains every setting")


def _suggestion(name: str, known: list[str], helper: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean '{close[0]}'?" if close else f"kyon-pl {helper} --help lists all settings"


def explain(error: argparse.ArgumentError, args: list[str] | None) -> SettingError:
    """One paragraph out of the parser's report on the settings of fit.

    Args:
        error: what it raised.
        args: what it was given; unset, the words of this process.
    """
    return explain_words(error, sys.argv[1:] if args is None else args, known_settings)


def explain_misuse(error: MisconfigurationException) -> SettingError:
    """One paragraph out of what Lightning says of the settings of its Trainer.

    Args:
        error: what it raised.
    """
    text = " ".join(str(error).split())
    named = [key for key in known_settings() if re.search(rf"\b{re.escape(key.removeprefix('trainer.'))}\b", text)]
    where = next((key for key in named if key.startswith("trainer.")), "trainer")
    return SettingError(where, text, "kyon-pl fit --help explains every setting")


def known_settings() -> list[str]:
    """The names of all settings, as they are typed behind `--`."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(ChatGLM2LoRA, "model")
    parser.add_lightning_class_args(DialogueDataModule, "data")
    return list(parser.get_defaults().keys(branches=True))
