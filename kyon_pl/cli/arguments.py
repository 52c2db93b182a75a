"""Every key that a YAML of fit may have, for the commands that read one and do not train."""

from __future__ import annotations

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from kyon_pl.data import DialogueDataModule
from kyon_pl.training import ChatGLM2LoRA
from kyon_pl.training.callbacks import ReplySettings, ReplyWriter


def add_fit_arguments(parser: LightningArgumentParser) -> None:
    """Make a parser take every key that a YAML of fit may have, the saved `config.yaml` of a run included."""
    parser.add_argument(
        "-c", "--config", action=ActionConfigFile, help="a YAML of fit; may be given again, the last on top"
    )
    parser.add_argument("--seed_everything", type=bool | int, default=2023, help="the seed of everything")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(ChatGLM2LoRA, "model")
    parser.add_lightning_class_args(DialogueDataModule, "data")
    add_own_arguments(parser)
    parser.add_method_arguments(Trainer, "fit", skip={"model", "train_dataloaders", "val_dataloaders", "datamodule"})


def add_own_arguments(parser: LightningArgumentParser) -> None:
    """What Lightning's own command line does not have: the replies that are written, and how a run goes on.

    There is one base for model and tokenizer, and one seed for everything.

    Args:
        parser: it has model, data and seed already.
    """
    parser.add_lightning_class_args(ReplyWriter, "replies")
    parser.add_argument(
        "--held_out",
        type=ReplySettings | None,
        default=None,
        help="replies to held-out questions while training, and in validate and test; null: none",
    )
    parser.add_argument(
        "--auto_resume",
        type=bool,
        default=False,
        help="go on with the newest run in the log folder that was killed and that was started with these settings; "
        "false: start a new run",
    )
    parser.add_argument(
        "--allow_changed_settings",
        type=bool,
        default=False,
        help="with --ckpt_path: go on from a checkpoint of a run with other settings, for more epochs for one",
    )
    parser.link_arguments("model.base", "data.tokenizer")
    parser.link_arguments("model.revision", "data.tokenizer_revision")
    parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
