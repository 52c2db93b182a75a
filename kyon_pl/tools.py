"""The commands that are typed functions, and the parser that they share with fit."""

from __future__ import annotations

import argparse
import sys

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from kyon_pl.data import DialogueDataModule
from kyon_pl.data.preview import preview
from kyon_pl.run import add_resume_arguments, explain
from kyon_pl.training import ChatGLM2LoRA
from kyon_pl.training.callbacks import ReplyWriter


def run_preview(args: list[str] | None) -> None:
    """Parse the options of `preview` and run it.

    Args:
        args: the command and its options; unset, those of this process.

    Raises:
        SettingError: a key or value that the parser does not take.
        KyonError: whatever `preview` refuses.
    """
    description = "Rows as the model sees them. Takes the YAML and the options of fit."
    parser = LightningArgumentParser(prog="kyon-pl preview", description=description, exit_on_error=False)
    parser.add_function_arguments(preview, skip={"data"})
    add_fit_arguments(parser)
    try:
        settings = parser.parse_args((sys.argv[1:] if args is None else args)[1:])
    except argparse.ArgumentError as error:
        raise explain(error, args) from error
    preview(DialogueDataModule(**settings.data.as_dict()), rows=settings.rows, png=settings.png)


def add_fit_arguments(parser: LightningArgumentParser) -> None:
    """Make a parser take every key that a YAML of fit may have, the saved `config.yaml` of a run included."""
    parser.add_argument(
        "-c", "--config", action=ActionConfigFile, help="a YAML of fit; may be given again, the last on top"
    )
    parser.add_argument("--seed_everything", type=bool | int, default=2023, help="the seed of everything")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(ChatGLM2LoRA, "model")
    parser.add_lightning_class_args(DialogueDataModule, "data")
    parser.add_lightning_class_args(ReplyWriter, "replies")
    add_resume_arguments(parser)
    parser.add_method_arguments(Trainer, "fit", skip={"model", "train_dataloaders", "val_dataloaders", "datamodule"})
    parser.link_arguments("model.base", "data.tokenizer")
    parser.link_arguments("model.revision", "data.tokenizer_revision")
    parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
