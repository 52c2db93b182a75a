"""fit, validate, test and predict: LightningCLI with this project's two classes, its checks before and its words
after.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import sys
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.distributed.constants import default_pg_timeout

from kyon_pl import __version__
from kyon_pl.continuation import Start, find_checkpoint, folder_of_runs, start_by_itself, start_from
from kyon_pl.data import DialogueDataModule
from kyon_pl.doctor import check_run
from kyon_pl.errors import KyonError, MachineError, SettingError
from kyon_pl.explain import explain_words
from kyon_pl.logs import from_here
from kyon_pl.settings import check_config_files, check_trainer
from kyon_pl.training import ChatGLM2LoRA
from kyon_pl.training.callbacks import (
    AdapterGuard,
    FinalMetrics,
    FiniteGuard,
    FirstValidation,
    HeldOutReplies,
    MemoryGuard,
    Progress,
    Randomness,
    Ranks,
    ReplySettings,
    ReplyWriter,
    RunEstimate,
    RunLog,
    RunRecord,
    ShownRows,
    StepCheckpoint,
    StepMetrics,
    StopSignals,
)
from kyon_pl.training.callbacks.stop_signals import LAUNCHER
from kyon_pl.training.checkpoint_io import (
    DISK_ERRORS,
    AdapterCheckpointIO,
    check_writable,
    explain_disk_error,
    read_checkpoint,
)
from kyon_pl.training.elastic import MICRO_BATCHES, in_terms_of, share_steps
from kyon_pl.training.fingerprint import FINGERPRINT, check_fingerprint, fingerprint_of_settings

log = logging.getLogger(__name__)


def run_trainer(args: list[str] | None) -> None:
    """Parse a command of LightningCLI and run it.

    Args:
        args: the command and its options; unset, those of this process.

    Raises:
        SettingError: a key or value that the parser does not take.
        KyonError: whatever the run itself refuses.
    """
    check_config_files(sys.argv[1:] if args is None else args)
    try:
        KyonCLI(args=args)
    except RunFinished as finished:
        log.info("%s", finished)
    except MisconfigurationException as error:  # what Lightning says of settings that do not go together
        raise explain_misuse(error) from error
    except argparse.ArgumentError as error:
        raise explain(error, args) from error
    except OSError as error:
        if isinstance(error, KyonError) or error.errno not in DISK_ERRORS:
            raise
        name = os.fsdecode(error.filename) if error.filename else os.getcwd()  # noqa: PTH109 (as a text)
        raise explain_disk_error(error, Path(name)) from error
    except (RuntimeError, MemoryError) as error:
        if isinstance(error.__cause__, MachineError):  # MemoryGuard has explained it
            raise error.__cause__ from None
        raise


class RunFinished(Exception):  # noqa: N818 (it is no error)
    """The run that this command would go on with has ended; the text says so, and how to train more."""


class KyonCLI(LightningCLI):
    """LightningCLI bound to `ChatGLM2LoRA` and `DialogueDataModule`."""

    def __init__(self, args: list[str] | None) -> None:
        self.asked = (sys.argv[1:] if args is None else args)[0]
        self.saved: dict[str, str] = {}  # the fingerprint of the run that this one goes on with
        super().__init__(
            ChatGLM2LoRA,
            DialogueDataModule,
            args=args,
            seed_everything_default=2023,
            save_config_callback=SaveConfigCallback if self.asked == "fit" else None,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning has it without self
        """Of the commands, the one that is asked for: a parser takes a tenth of a second to make."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name == self.asked}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One base for model and tokenizer, one seed for everything, and the file that predict writes."""
        parser.link_arguments("model.base", "data.tokenizer")
        parser.link_arguments("model.revision", "data.tokenizer_revision")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.add_lightning_class_args(ReplyWriter, "replies")
        add_reply_argument(parser)
        add_resume_arguments(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and look at settings and at a named checkpoint before Lightning does, whose errors are tracebacks.

        Raises:
            SettingError: a setting that its Trainer cannot work with.
            CheckpointError: the checkpoint cannot be read.
        """
        super().parse_arguments(parser, args)
        settings = self.config[self.config.subcommand]
        check_trainer(settings)
        path = settings.ckpt_path
        if path and Path(path).is_file():
            read_checkpoint(path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with this project's callbacks and its way of writing checkpoints."""
        writer = AdapterCheckpointIO(self.model.write_adapter, self._config_text())
        plugins = self._get(self.config_init, "trainer.plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        callbacks = self._get(self.config_init, "trainer.callbacks") or []
        callbacks = self._callbacks(callbacks if isinstance(callbacks, list) else [callbacks])
        # batches are planned over ranks already; Lightning's own sampler would deal them out a second time
        return super().instantiate_trainer(
            **kwargs, callbacks=callbacks, plugins=[*plugins, writer], use_distributed_sampler=False
        )

    def _config_text(self) -> str:
        return str(self._parser(self.subcommand).dump(self.config[str(self.subcommand)], skip_none=False))

    def _callbacks(self, chosen: list[Callback]) -> list[Callback]:
        settings = self.config[str(self.subcommand)]
        callbacks = [
            RunLog(),
            FiniteGuard(),
            AdapterGuard(),
            MemoryGuard(),
            RunEstimate(),
            FirstValidation(),
            StepMetrics(),
        ]
        callbacks.append(Randomness(int(settings.seed_everything)))
        record = RunRecord(self.fingerprint, settings.allow_changed_settings)
        timeout = timeout_of(settings.trainer.strategy)
        callbacks += [record, Ranks(lambda: self._identity(record.fingerprint), timeout)]
        callbacks += [ShownRows(), FinalMetrics(self._settings)]  # behind the record, which cuts the curves
        if replies := self.config_init[str(self.subcommand)].held_out:
            callbacks.append(HeldOutReplies(replies))
        if settings.trainer.enable_progress_bar is not False:
            callbacks.append(Progress())
        if self.subcommand != "fit" or settings.trainer.enable_checkpointing is False or settings.trainer.fast_dev_run:
            return [*callbacks, *chosen]
        return [*callbacks, *best_before_newest(chosen), StopSignals(timeout)]

    def fingerprint(self) -> dict[str, str]:
        """What the result depends on: settings, base, data; these two are fetched where they are not there yet."""
        found: dict[str, str] = self.model.fingerprint() | self.datamodule.fingerprint()
        return self._settings() | found

    def _settings(self) -> dict[str, str]:
        found = fingerprint_of_settings(yaml.safe_load(self._config_text()))
        found["kind of device"] = self.trainer.strategy.root_device.type
        accumulated = self.config[str(self.subcommand)].trainer.accumulate_grad_batches
        found[MICRO_BATCHES] = str(self.trainer.world_size * accumulated)
        return in_terms_of(self.saved, found)

    def _identity(self, fingerprint: dict[str, str]) -> dict[str, str]:
        """What must be the same on every rank."""
        start = self.config_init["fit"].ckpt_path
        of_packages = dict(text.rsplit(" ", 1) for text in versions().split(", "))
        return fingerprint | of_packages | {"checkpoint": Path(start).name if start else "none"}

    def before_fit(self) -> None:
        """Find the run to go on with, and refuse what cannot work here while nothing large has been downloaded.

        Raises:
            RunFinished: there is nothing to do.
            MissingFileError: no such checkpoint, or no such base.
            CheckpointError: the checkpoint is not one of a run with these settings.
            MachineError: the base does not fit this machine, or nothing may be written into the run folder.
            SettingError: a precision that this model was not made for.
        """
        self._say_start()
        self._check_run()
        start = self._start()
        if start.finished:
            raise RunFinished(finished(start))
        check_writable(start.folder or folder_of_runs(self.trainer) or Path(self.trainer.default_root_dir))
        if start.folder:
            self._go_on_in(start.folder)
            beginning = start.checkpoint.name if start.checkpoint else "its beginning"
            log.info("going on with %s from %s", from_here(start.folder), beginning)
        self._share_steps(start.fingerprint)
        self.config_init["fit"]["ckpt_path"] = start.checkpoint
        if self.trainer.local_rank == 0:
            os.environ[LAUNCHER] = str(os.getpid())

    def _say_start(self) -> None:
        """Which versions run, and what was chosen."""
        settings, trainer = self.config["fit"], self.trainer
        log.info("kyon-pl fit: %s", versions())
        files = ", ".join(str(from_here(str(file))) for file in settings.config or []) or "no file, defaults"
        devices = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
        log.info("config: %s; %s, %s, seed %s", files, devices, trainer.precision, settings.seed_everything)
        data, accumulated = settings.data, settings.trainer.accumulate_grad_batches
        size = f"{data.tokens_per_batch:,} tokens" if data.batching == "packed" else f"{data.rows_per_batch} rows"
        log.info("batches: %s, %s each, %d of them an optimizer step and device", data.batching, size, accumulated)

    def _start(self) -> Start:
        settings = self.config["fit"]
        if settings.ckpt_path:
            start = start_from(settings.ckpt_path, self.trainer)
            if not settings.allow_changed_settings:
                now = in_terms_of(start.fingerprint, self._settings())
                known = {key: text for key, text in start.fingerprint.items() if key in now}
                check_fingerprint({FINGERPRINT: known}, now)
            return start
        requeued = SLURMEnvironment.detect() and any(Path(self.trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
        if not settings.auto_resume or settings.trainer.fast_dev_run or requeued:  # Lightning finds its own then
            return Start()
        return start_by_itself(self.trainer, self._settings(), self.fingerprint)

    def _share_steps(self, saved: dict[str, str]) -> None:
        """Take the optimizer steps of the run that goes on for this one's, if it has other devices."""
        self.saved = saved
        if saved.get(MICRO_BATCHES) == self._settings()[MICRO_BATCHES]:
            share_steps(self.trainer, saved)

    def _go_on_in(self, folder: Path) -> None:
        """Have the logger write into a run folder that exists."""
        chosen = self.config["fit"].trainer.logger
        chosen = chosen[0] if isinstance(chosen, list) else chosen
        given = {} if chosen in (None, True) else {**chosen.get("init_args", {}), **chosen.get("dict_kwargs", {})}
        given |= {"save_dir": folder.parent.parent, "name": folder.parent.name, "version": folder.name}
        self.trainer.logger = TensorBoardLogger(**given)

    def _check_run(self) -> None:
        precision = str(self.config[str(self.subcommand)].trainer.precision or "32-true")
        model, device = self.model, self.trainer.strategy.root_device
        model.check_settings(precision, device)
        check_run(
            model.base_config,
            precision,
            device,
            sharded_over=self.trainer.world_size if model.shard_base else 1,
            quantization=model.quantization,
        )

    def before_predict(self) -> None:
        """Find the checkpoint, and refuse what cannot work here while nothing large has been downloaded.

        Raises:
            KyonError: as `before_fit`.
        """
        self._check_run()
        if path := self.config[str(self.subcommand)].ckpt_path:
            self.config_init[str(self.subcommand)]["ckpt_path"] = find_checkpoint(path, self.trainer)

    before_validate = before_test = before_predict

    def after_fit(self) -> None:
        """Say what was written where, and what to type next."""
        run = from_here(self.trainer.log_dir or self.trainer.default_root_dir)  # all ranks: it is broadcast
        if self.trainer.is_global_zero:
            self._say_where(run)

    def _say_where(self, run: Path) -> None:
        callbacks = self.trainer.checkpoint_callbacks
        best = [c for c in callbacks if isinstance(c, ModelCheckpoint) and c.best_model_path]
        last = [file for c in callbacks if isinstance(c, StepCheckpoint) and (file := c.newest(self.trainer))]
        for callback in best:
            folder = from_here(callback.best_model_path).with_suffix("")
            log.info("best adapter: %s (%s %.4f)", folder, callback.monitor, callback.best_model_score)
        for file in last[-1:]:
            log.info("last adapter: %s", from_here(file).with_suffix(""))
        log.info("curves: tensorboard --logdir %s", run.parent)
        for file in ([Path(callback.best_model_path) for callback in best] + last)[:1]:
            log.info("next: kyon-pl predict --config %s --ckpt_path %s", run / "config.yaml", from_here(file))


def add_reply_argument(parser: LightningArgumentParser) -> None:
    """The settings of the replies to held-out questions."""
    parser.add_argument(
        "--held_out",
        type=ReplySettings | None,
        default=None,
        help="replies to held-out questions while training, and in validate and test; null: none",
    )


def add_resume_arguments(parser: LightningArgumentParser) -> None:
    """The settings of how a run goes on."""
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


def best_before_newest(callbacks: list[Callback]) -> list[Callback]:
    """A StepCheckpoint saves the state of a ModelCheckpoint of the same step, and so has to come after it.

    Args:
        callbacks: as chosen; without a StepCheckpoint they get one.
    """
    steps = [callback for callback in callbacks if isinstance(callback, StepCheckpoint)] or [StepCheckpoint()]
    others = [callback for callback in callbacks if not isinstance(callback, StepCheckpoint)]
    last_best = max((i for i, callback in enumerate(others) if isinstance(callback, ModelCheckpoint)), default=-1)
    return [*others[: last_best + 1], *steps, *others[last_best + 1 :]]


def finished(start: Start) -> str:
    """What to say of a run that has ended, and what to type to train more."""
    assert start.folder is not None
    adapter = f", adapter {from_here(start.checkpoint.with_suffix(''))}" if start.checkpoint else ""
    return (
        f"finished already: {from_here(start.folder)}{adapter}. To train it further, add --ckpt_path last "
        "--allow_changed_settings true --trainer.max_epochs N; to train anew, add --auto_resume false"
    )


def timeout_of(strategy: Any) -> timedelta:
    """How long a rank waits for another, by the settings of a strategy."""
    given = strategy.get("init_args.timeout") if isinstance(strategy, Namespace) else None
    return given or default_pg_timeout


def versions() -> str:
    """This package's, Python's and those of the libraries that a result depends on."""
    libraries = (f"{name} {version(name)}" for name in ("torch", "lightning", "transformers", "peft"))
    return ", ".join([f"kyon_pl {__version__}", *libraries, f"Python {platform.python_version()}"])


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
