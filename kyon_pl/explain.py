"""What a parser says of a command line, as one paragraph."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable

from kyon_pl.errors import SettingError
from kyon_pl.named_configs import config_files, names
from kyon_pl.settings import REMOTE_CODE, no_remote_code


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
