"""fit, validate, test and predict: LightningCLI with this project's two classes, its checks before and its words
after.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import re
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from kyon_pl.data import DialogueDataModule
from kyon_pl.doctor import check_run
from kyon_pl.errors import MissingFileError, SettingError
from kyon_pl.training import ChatGLM2LoRA
from kyon_pl.training.callbacks import Progress, ReplyWriter, RunEstimate, StepCheckpoint, StepMetrics
from kyon_pl.training.checkpoint_io import AdapterCheckpointIO

log = logging.getLogger(__name__)


def run_trainer(args: list[str] | None) -> None:
    """Parse a command of LightningCLI and run it.

    Args:
        args: the command and its options; unset, those of this process.

    Raises:
        SettingError: a key or value that the parser does not take.
        KyonError: whatever the run itself refuses.
    """
    try:
        KyonCLI(args=args)
    except argparse.ArgumentError as error:
        raise explain(error, args) from error


class KyonCLI(LightningCLI):
    """LightningCLI bound to `ChatGLM2LoRA` and `DialogueDataModule`."""

    def __init__(self, args: list[str] | None) -> None:
        super().__init__(
            ChatGLM2LoRA,
            DialogueDataModule,
            args=args,
            seed_everything_default=2023,
            save_config_callback=SaveConfigCallback if (args or sys.argv[1:])[0] == "fit" else None,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One base for model and tokenizer, one seed for everything, and the file that predict writes."""
        parser.link_arguments("model.base", "data.tokenizer")
        parser.link_arguments("model.revision", "data.tokenizer_revision")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.add_lightning_class_args(ReplyWriter, "replies")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the writer that puts a PEFT folder beside every checkpoint."""
        config = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False)
        writer = AdapterCheckpointIO(self.model.write_adapter, config)
        plugins = self._get(self.config_init, "trainer.plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        callbacks = [RunEstimate(), StepMetrics(), *(self._get(self.config_init, "trainer.callbacks") or [])]
        if self._get(self.config_init, "trainer.enable_progress_bar") is not False:
            callbacks.append(Progress())
        # batches are planned over ranks already; Lightning's own sampler would deal them out a second time
        return super().instantiate_trainer(
            **kwargs, callbacks=callbacks, plugins=[*plugins, writer], use_distributed_sampler=False
        )

    def before_fit(self) -> None:
        """Refuse what cannot work here while nothing large has been downloaded.

        Raises:
            MissingFileError: no such checkpoint, or no such base.
            MachineError: the base does not fit this machine.
            SettingError: a precision that this model was not made for.
        """
        settings = self.config[str(self.subcommand)]
        if settings.ckpt_path and not Path(settings.ckpt_path).is_file():
            raise MissingFileError(
                where="--ckpt_path",
                found=f"there is no file '{settings.ckpt_path}'",
                fix="Checkpoints lie in lightning_logs/version_N/checkpoints",
            )
        check_run(
            self.model.base_config, str(settings.trainer.precision or "32-true"), self.trainer.strategy.root_device
        )

    before_validate = before_test = before_predict = before_fit

    def after_fit(self) -> None:
        """Say what was written where, and what to type next."""
        run = from_here(self.trainer.log_dir or self.trainer.default_root_dir)  # all ranks: it is broadcast
        if self.trainer.is_global_zero:
            self._say_where(run)

    def _say_where(self, run: Path) -> None:
        callbacks = self.trainer.checkpoint_callbacks
        best = [c for c in callbacks if isinstance(c, ModelCheckpoint) and c.best_model_path]
        last = [path for c in callbacks if isinstance(c, StepCheckpoint) for path in c.saved]
        for callback in best:
            folder = from_here(callback.best_model_path).with_suffix("")
            log.info("best adapter: %s (%s %.4f)", folder, callback.monitor, callback.best_model_score)
        for path in last[-1:]:
            log.info("last adapter: %s", from_here(path).with_suffix(""))
        log.info("curves: tensorboard --logdir %s", run.parent)
        for path in ([callback.best_model_path for callback in best] + last)[:1]:
            log.info("next: kyon-pl predict --config %s --ckpt_path %s", run / "config.yaml", from_here(path))


def from_here(path: str | Path) -> Path:
    """A path as it is best typed in this folder."""
    path = Path(path).absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def explain(error: argparse.ArgumentError, args: list[str] | None) -> SettingError:
    """One paragraph out of the parser's report.

    Args:
        error: what it raised.
        args: what it was given; unset, the words of this process.
    """
    text, words = str(error), sys.argv[1:] if args is None else args
    where = key[1] if (key := re.search(r'Parser key "([^"]+)"', text)) else "command line"
    if unknown := re.search(
        r"[Oo]ption '([^']+)' is not accepted|accept option '([^']+)'|unrecognized arguments: (\S+)", text
    ):
        name = next(group for group in unknown.groups() if group).lstrip("-").split("=")[0]
        full = f"{where}.{name}" if key else name
        return SettingError(full, "there is no such setting", suggestion(full))
    lines = [line.strip(" -") for line in text.splitlines()]
    boring = (
        "Parser key",
        "Does not validate",
        "Subtypes",
        "Errors:",
        "Given value type",
        "Problem with given class_path",
    )
    said = [line for line in lines if line and not line.startswith(boring) and "NoneType" not in line]
    found = "; ".join(said) if said else text
    if "Problems parsing config" in text:
        files = ", ".join(words[place + 1] for place, word in enumerate(words[:-1]) if word in ("--config", "-c"))
        return SettingError(files, f"not YAML: {found.split(': ', 1)[-1]}", "Correct the file at that line")
    if where == "config" or "File does not exist" in text:
        return SettingError(
            "--config", text.split(": ", 1)[-1].rstrip("."), "Give the path of a YAML file, such as configs/lora.yaml"
        )
    return SettingError(where, found.rstrip("."), "kyon-pl fit --help explains every setting")


def suggestion(name: str) -> str:
    """The setting that was probably meant."""
    close = difflib.get_close_matches(name, known_settings(), n=1)
    return f"Did you mean '{close[0]}'?" if close else "kyon-pl fit --print_config lists all settings"


def known_settings() -> list[str]:
    """The names of all settings, as they are typed behind `--`."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(ChatGLM2LoRA, "model")
    parser.add_lightning_class_args(DialogueDataModule, "data")
    return list(parser.get_defaults().keys(branches=True))
