"""One clear text for each way in which the settings of a run can be wrong, whoever finds it."""

from __future__ import annotations

import argparse
import re
import sys

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from kyon_pl.data import DialogueDataModule
from kyon_pl.errors import SettingError
from kyon_pl.explain import explain_words
from kyon_pl.training import ChatGLM2LoRA


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
