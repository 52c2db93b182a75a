"""Every key that a YAML of fit may have, for the commands that read one and do not train."""

from __future__ import annotations

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from kyon_pl.data import DialogueDataModule
from kyon_pl.run import add_reply_argument, add_resume_arguments
from kyon_pl.training import ChatGLM2LoRA
from kyon_pl.training.callbacks import ReplyWriter


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
    add_reply_argument(parser)
    add_resume_arguments(parser)
    parser.add_method_arguments(Trainer, "fit", skip={"model", "train_dataloaders", "val_dataloaders", "datamodule"})
    parser.link_arguments("model.base", "data.tokenizer")
    parser.link_arguments("model.revision", "data.tokenizer_revision")
    parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
