"""fit, validate, test and predict: LightningCLI with this project's two classes, its checks before and its words
after.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from datetime import timedelta
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

from kyon_pl.cli.arguments import add_own_arguments
from kyon_pl.cli.messages import explain, explain_misuse
from kyon_pl.cli.run_messages import finished, say_start, say_where, versions
from kyon_pl.cli.settings import check_config_files, check_trainer
from kyon_pl.data import DialogueDataModule
from kyon_pl.doctor import check_precision, check_run
from kyon_pl.errors import KyonError, MachineError
from kyon_pl.logs import from_here
from kyon_pl.runs.checkpoint_io import (
    DISK_ERRORS,
    AdapterCheckpointIO,
    check_writable,
    explain_disk_error,
    read_checkpoint,
)
from kyon_pl.runs.fingerprint import (
    FINGERPRINT,
    MICRO_BATCHES,
    check_fingerprint,
    fingerprint_of_settings,
    keep_accumulation,
)
from kyon_pl.runs.resume import Start, find_checkpoint, find_resumable_run, folder_of_runs, start_from_checkpoint
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
    RunEstimate,
    RunLog,
    RunRecord,
    ShownRows,
    StepCheckpoint,
    StepMetrics,
    StopSignals,
)
from kyon_pl.training.callbacks.stop_signals import LAUNCHER
from kyon_pl.training.elastic import keep_optimizer_steps

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
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False, self.asked: {"allow_abbrev": False}},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning has it without self
        """Of the commands, the one that is asked for: a parser takes a tenth of a second to make."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name == self.asked}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """See `add_own_arguments`."""
        add_own_arguments(parser)

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
        model: ChatGLM2LoRA = self.model
        rows: dict[str, str] = self.datamodule.fingerprint()
        return self._settings() | model.frozen_base.fingerprint() | model.initial_adapter.fingerprint() | rows

    def _settings(self) -> dict[str, str]:
        found = fingerprint_of_settings(yaml.safe_load(self._config_text()))
        found["kind of device"] = self.trainer.strategy.root_device.type
        accumulated = self.config[str(self.subcommand)].trainer.accumulate_grad_batches
        found[MICRO_BATCHES] = str(self.trainer.world_size * accumulated)
        return keep_accumulation(self.saved, found)

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
        say_start(self.config["fit"], self.trainer)
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

    def _start(self) -> Start:
        settings = self.config["fit"]
        if settings.ckpt_path:
            start = start_from_checkpoint(settings.ckpt_path, self.trainer)
            if not settings.allow_changed_settings:
                now = keep_accumulation(start.fingerprint, self._settings())
                known = {key: text for key, text in start.fingerprint.items() if key in now}
                check_fingerprint({FINGERPRINT: known}, now)
            return start
        requeued = SLURMEnvironment.detect() and any(Path(self.trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
        if not settings.auto_resume or settings.trainer.fast_dev_run or requeued:  # Lightning finds its own then
            return Start()
        return find_resumable_run(self.trainer, self._settings(), self.fingerprint)

    def _share_steps(self, saved: dict[str, str]) -> None:
        """Take the optimizer steps of the run that goes on for this one's, if it has other devices."""
        self.saved = saved
        if saved.get(MICRO_BATCHES) == self._settings()[MICRO_BATCHES]:
            keep_optimizer_steps(self.trainer, saved)

    def _go_on_in(self, folder: Path) -> None:
        """Have the logger write into a run folder that exists."""
        chosen = self.config["fit"].trainer.logger
        chosen = chosen[0] if isinstance(chosen, list) else chosen
        given = {} if chosen in (None, True) else {**chosen.get("init_args", {}), **chosen.get("dict_kwargs", {})}
        given |= {"save_dir": folder.parent.parent, "name": folder.parent.name, "version": folder.name}
        self.trainer.logger = TensorBoardLogger(**given)

    def _check_run(self) -> None:
        precision = str(self.config[str(self.subcommand)].trainer.precision or "32-true")
        base, device = self.model.frozen_base, self.trainer.strategy.root_device
        check_precision(precision, device.type)  # before the base's config, which may have to come from the Hub
        base.check(self.model.initial_adapter, precision, device)
        check_run(
            base.config,
            precision,
            device,
            sharded_over=self.trainer.world_size if base.sharded else 1,
            quantization=base.quantization,
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
            say_where(self.trainer, run)


def best_before_newest(callbacks: list[Callback]) -> list[Callback]:
    """A StepCheckpoint saves the state of a ModelCheckpoint of the same step, and so has to come after it.

    Args:
        callbacks: as chosen; without a StepCheckpoint they get one.
    """
    steps = [callback for callback in callbacks if isinstance(callback, StepCheckpoint)] or [StepCheckpoint()]
    others = [callback for callback in callbacks if not isinstance(callback, StepCheckpoint)]
    last_best = max((i for i, callback in enumerate(others) if isinstance(callback, ModelCheckpoint)), default=-1)
    return [*others[: last_best + 1], *steps, *others[last_best + 1 :]]


def timeout_of(strategy: Any) -> timedelta:
    """How long a rank waits for another, by the settings of a strategy."""
    given = strategy.get("init_args.timeout") if isinstance(strategy, Namespace) else None
    return given or default_pg_timeout
