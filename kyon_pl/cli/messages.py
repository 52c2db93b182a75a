"""Errors of the parser and of Lightning's Trainer, each as one paragraph."""

from __future__ import annotations

import argparse
import re
import traceback
from types import FrameType

from kyon_pl.cli.allowed_code import denied_code
from kyon_pl.cli.options import help_option, options_of, unknown_setting
from kyon_pl.cli.settings import config_files, names
from kyon_pl.errors import SettingError

_NOT_SHOWN = (
    "Parser key",
    "Does not validate",
    "Subtypes",
    "Errors:",
    "Given value type",
    "Problem with given class_path",
)
_REFUSING = re.compile(r"Problem with given class_path '([\w.]+)'|Namespace\(class_path='([\w.]+)'")
# what classes raise that were given arguments they cannot work with
ARGUMENT_ERRORS = (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError)
# the module of such a class -> the setting that names it
_SETTING_OF = {
    "torch.optim.lr_scheduler": "model.schedule",
    "torch.optim.": "model.optimizer",
    "lightning.pytorch.callbacks.": "trainer.callbacks",
    "lightning.pytorch.loggers.": "trainer.logger",
    "lightning.pytorch.profilers.": "trainer.profiler",
    "lightning.pytorch.strategies.": "trainer.strategy",
    "lightning.pytorch.plugins.": "trainer.plugins",
}
_CALL_BACK = ("torch.optim.", "lightning.pytorch.strategies.", "lightning.pytorch.plugins.")  # into a training step
_SETS_UP = ("setup_environment", "setup_distributed")  # of a strategy, before there is a step
_NOT_SHOWN_OF_CLASSES = ("Type ", "Expected a path", "Expected a dot import path")


def explain(error: argparse.ArgumentError, words: list[str]) -> SettingError:
    """One paragraph from the parser's report.

    Args:
        error: from the parser.
        words: the command line, the command first.
    """
    text = str(error)
    keys = re.findall(r'Parser key "([^"]+)"', text)
    where = keys[0] if keys else "command line"
    if unknown := re.search(
        r"[Oo]ption '([^']+)' is not accepted|accept option '([^']+)'|[Uu]nrecognized arguments: (\S+)", text
    ):
        name = next(group for group in unknown.groups() if group).lstrip("-").split("=")[0]
        name = f"{where}.{name}" if keys else name
        return unknown_setting(name, name, words[0])
    if len(keys) > 1:  # an argument of a class
        where = f"{where}.init_args.{keys[-1]}"
    if denied := denied_code(where, text):
        return denied
    not_shown = (*_NOT_SHOWN, *(_NOT_SHOWN_OF_CLASSES if len(keys) > 1 else ()))
    lines = [line.strip(" -") for line in text.splitlines()]
    shown = [line for line in lines if line and not line.startswith(not_shown) and "NoneType" not in line]
    found = "; ".join(shown).partition(". Got value: Namespace(")[0] if shown else text
    if "Problems parsing config" in text:
        files = ", ".join(config_files(words))
        return SettingError(files, f"not YAML: {found.split(': ', 1)[-1]}", "Correct the file at that line")
    if where == "config" or "File does not exist" in text:
        fix = f"Give the path of a YAML file, or one of the names {', '.join(names())}"
        return SettingError("--config", text.split(": ", 1)[-1].rstrip("."), fix)
    return SettingError(where, found.rstrip("."), f"kyon-pl {words[0]} {help_option(words[0])} explains every setting")


def explain_misuse(error: Exception) -> SettingError:
    """One paragraph from what Lightning reports about settings of its Trainer and its callbacks.

    Args:
        error: Lightning's `MisconfigurationException`, or a ValueError that it raised.
    """
    text = " ".join(str(error).split())
    keys = [key.removeprefix("trainer.") for key in known_settings() if key.startswith("trainer.")]
    named = next((f"trainer.{key}" for key in keys if re.search(rf"\b{re.escape(key)}\b", text)), "trainer")
    return SettingError(named, text, "kyon-pl fit --help all explains every setting")


def explain_refused_arguments(error: Exception) -> SettingError | None:
    """One paragraph from what a class that a setting names says of its arguments, or of a package that it needs.

    Args:
        error: one of `ARGUMENT_ERRORS` or an OSError: from the parser, when it makes the objects, or from such a class
            in a run.

    Returns:
        None if the error does not come from such a class.
    """
    text = f"{error.strerror}: {str(error.filename)[:80]}" if isinstance(error, OSError) else str(error)
    if named := _REFUSING.search(text):
        said = re.split("Given value|Subclass types", text.partition("Errors:")[2])[0].splitlines()
        lines = [line.strip(" -") for line in said]
        lines = [
            line for line in lines if line and not line.startswith((*_NOT_SHOWN, "Expected a ", "Not a valid sub"))
        ]
        found = "; ".join(lines) or str(error.__cause__)
        fix = "Correct its arguments, or install what it needs; kyon-pl fit --help all explains every setting"
        return SettingError(named[1] or named[2], found.rstrip("."), fix)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if raised := _raised_by_class(frames):
        setting, kind = raised
        found = f"{kind}: {' '.join(text.split()) or type(error).__name__}"
        return SettingError(setting, found, "Correct its arguments; kyon-pl fit --help all explains every setting")
    misused = isinstance(error, ValueError) and frames and _module(frames[-1]).startswith("lightning.")
    return explain_misuse(error) if misused else None


def _raised_by_class(frames: list[FrameType]) -> tuple[str, str] | None:
    """The setting and the class that raised an error; None: this package has, or a library on its own.

    Args:
        frames: of the traceback, the innermost last.
    """
    for frame in reversed(frames):
        module = _module(frame)
        if module.startswith("kyon_pl."):
            return None
        for start, setting in _SETTING_OF.items():
            if module.startswith(start):
                calls_back = start in _CALL_BACK and frame.f_code.co_name not in _SETS_UP
                if calls_back and frame is not frames[-1]:
                    return None
                return setting, type(frame.f_locals["self"]).__name__ if "self" in frame.f_locals else module
    return None


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def known_settings() -> list[str]:
    """The names of all settings of fit, as typed after `--`."""
    return [*options_of("fit")]
