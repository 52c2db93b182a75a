"""fit, validate, test and predict: LightningCLI with this package's model and data, checks and messages."""

from __future__ import annotations

import argparse
import errno
import logging
import os
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from torch.distributed.constants import default_pg_timeout

from kyon_pl.cli.allowed_code import check_classes, restrict_imports, take_allowed_code
from kyon_pl.cli.arguments import check_integers, check_trainer, drop_demo_validation, link_settings
from kyon_pl.cli.auto import CONFIG, resolve_auto, share_choice
from kyon_pl.cli.messages import ARGUMENT_ERRORS, explain, explain_misuse, explain_refused_arguments
from kyon_pl.cli.run_messages import say_start, say_where, versions
from kyon_pl.cli.run_start import RunFinished, RunStart, inputs_of, outputs_of
from kyon_pl.cli.streams import require_stdout
from kyon_pl.cli.system_errors import explain_system_error
from kyon_pl.data import DialogueDataModule
from kyon_pl.data.reading.files import files_of_each
from kyon_pl.doctor import check_precision, check_run
from kyon_pl.doctor.device import count_devices
from kyon_pl.errors import MachineError
from kyon_pl.logs import from_here
from kyon_pl.outputs import check_outputs
from kyon_pl.runs.checkpoint_io import (
    AdapterCheckpointIO,
    read_checkpoint,
    restoring_explained,
)
from kyon_pl.runs.fingerprint import (
    ACCUMULATE,
    DEVICE,
    MICRO_BATCHES,
    TOKENS_PER_STEP,
    fingerprint_of_settings,
    keep_accumulation,
)
from kyon_pl.runs.prompt_format import PromptFormat, character_option, read_prompt_format, read_role_formats
from kyon_pl.runs.resume import (
    find_checkpoint,
)
from kyon_pl.training import ChatGLM2LoRA
from kyon_pl.training.callbacks import (
    AdapterGuard,
    FinalMetrics,
    FiniteGuard,
    FirstValidation,
    HeldOutReplies,
    MemoryGuard,
    OptionalCurves,
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
from kyon_pl.training.callbacks.stop_signals import LAUNCHER, restored_handlers
from kyon_pl.training.elastic import keep_optimizer_steps, rescale_intervals
from kyon_pl.training.strategy import DDP_TIMEOUT, adapter_ddp

log = logging.getLogger(__name__)


def run_trainer(words: list[str]) -> None:
    """Parse a command of LightningCLI and run it.

    Args:
        words: the command and its options.

    Raises:
        SettingError: a key or value that the parser does not take.
        KyonError: whatever the run itself refuses.
    """
    words, allowed = take_allowed_code(words)
    restrict_imports(allowed)
    try:
        with restoring_explained(), restored_handlers(), ExitStack() as held:
            KyonCLI(words, held)
    except RunFinished as finished:
        log.info("%s", finished)
    except MisconfigurationException as error:
        raise explain_misuse(error) from error
    except argparse.ArgumentError as error:
        raise explain(error, words) from error
    except OSError as error:
        # too long a name is one that a setting gives, and no fault of the machine
        if error.errno == errno.ENAMETOOLONG and (explained := explain_refused_arguments(error)):
            raise explained from error
        raise
    except (MemoryError, *ARGUMENT_ERRORS) as error:
        if isinstance(error.__cause__, MachineError):  # MemoryGuard has explained it
            raise error.__cause__ from None
        if explain_system_error(error) or not (explained := explain_refused_arguments(error)):
            raise
        raise explained from error


class KyonCLI(LightningCLI):
    """LightningCLI bound to `ChatGLM2LoRA` and `DialogueDataModule`.

    Args:
        words: the command and its options.
        held: gets the lock of the run folder.
    """

    def __init__(self, words: list[str], held: ExitStack) -> None:
        self.command = words[0]
        self.held = held
        self.saved: dict[str, str] = {}  # the fingerprint of the run that is resumed
        self.choice: list[str] = []
        self.checkpointing_is_auto = False
        super().__init__(
            ChatGLM2LoRA,
            DialogueDataModule,
            args=words,
            seed_everything_default=2023,
            save_config_callback=SaveConfigCallback if self.command == "fit" else None,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False, self.command: {"allow_abbrev": False}},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning has it without self
        """Only the command that runs: building a parser takes 0.1 s."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name == self.command}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As Lightning does, except that `trainer.accumulate_grad_batches` can be `auto`."""
        parser.add_class_arguments(
            Trainer,
            "trainer",
            skip={"accumulate_grad_batches"},
            instantiate=False,
            fail_untyped=False,
            sub_configs=True,
        )
        parser.add_argument(
            f"--{ACCUMULATE}",
            type=int | Literal["auto"],
            default=1,
            help="micro-batches of an optimizer step on each device. auto: as many as make data.tokens_per_step, or "
            "data.rows_per_step, over all devices",
        )
        parser.add_lightning_class_args(ChatGLM2LoRA, "model")
        parser.add_lightning_class_args(DialogueDataModule, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the settings that LightningCLI does not have."""
        parser.add_lightning_class_args(ReplyWriter, "replies")
        parser.add_argument(
            "--held_out",
            type=ReplySettings | None,
            default=None,
            help="replies to held-out questions during training, validate and test; null: none",
        )
        parser.add_argument(
            "--auto_resume",
            type=bool,
            default=False,
            help="resume the newest unfinished run with the same settings in the log folder; false: start a new run",
        )
        parser.add_argument(
            "--allow_changed_settings",
            type=bool,
            default=False,
            help="with --ckpt_path: resume a checkpoint of a run with other settings, for example for more epochs",
        )
        link_settings(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then check settings and `--ckpt_path` before Lightning does, whose errors are tracebacks.

        Raises:
            SettingError: a setting that the Trainer cannot work with, or an output that is an input or not ours.
            CheckpointError: the checkpoint cannot be read.
        """
        super().parse_arguments(parser, args)
        require_stdout(False)  # from here on it shows progress and tables; --print_config has exited
        settings = self.config[self.config.subcommand]
        given = settings.as_dict()
        check_classes(given)
        check_integers(given)
        drop_demo_validation(settings, args)
        check_outputs(outputs_of(self.command, settings), inputs_of(settings))
        check_trainer(settings)
        path = settings.ckpt_path
        if path and Path(path).is_file():
            read_checkpoint(path)

    def before_instantiate_classes(self) -> None:
        """Replace `auto` by values; only fit needs those of this machine.

        Raises:
            KyonError: as `resolve_auto`.
        """
        settings = self.config[self.command]
        self.checkpointing_is_auto = settings.model.checkpointing == "auto"
        if self.command == "fit":
            self.choice = resolve_auto(settings, self._settings_alone())
        elif settings[ACCUMULATE] == "auto":
            settings[ACCUMULATE] = 1

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer with this package's callbacks and checkpoint writer."""
        self.prompt_format = self._prompt_format()
        self.writer = AdapterCheckpointIO(self.model.write_adapter, self._config_text(), self.prompt_format)
        plugins = self._get(self.config_init, "trainer.plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        callbacks = self._get(self.config_init, "trainer.callbacks") or []
        callbacks = self._callbacks(callbacks if isinstance(callbacks, list) else [callbacks])
        # the batches are planned over ranks already; Lightning's sampler would split them again
        trainer = self.config[self.command].trainer
        if trainer.strategy == "auto" and count_devices(trainer) > 1:
            kwargs["strategy"] = adapter_ddp()
        return super().instantiate_trainer(
            **kwargs, callbacks=callbacks, plugins=[*plugins, self.writer], use_distributed_sampler=False
        )

    def _prompt_format(self) -> PromptFormat:
        """How the prompts of this run's rows are written; `build-data` tells it beside the rows."""
        data: DialogueDataModule = self.datamodule
        named = files_of_each(data.source, data.split, data.name) if self.command == "fit" else []
        roles = read_role_formats(file for files in named for file in files or ())
        return PromptFormat(data.encoding.template, data.encoding.train_turns, roles)

    def _config_text(self) -> str:
        return str(self._parser(self.subcommand).dump(self.config[str(self.subcommand)], skip_none=False))

    def _callbacks(self, chosen: list[Callback]) -> list[Callback]:
        settings = self.config[str(self.subcommand)]
        callbacks = [
            RunLog(),
            OptionalCurves(),
            FiniteGuard(),
            AdapterGuard(),
            MemoryGuard(self._record_full_checkpointing if self.checkpointing_is_auto else None),
            RunEstimate(),
            FirstValidation(),
            StepMetrics(),
        ]
        callbacks.append(Randomness(int(settings.seed_everything)))
        record = RunRecord(self.fingerprint, settings.allow_changed_settings)
        timeout = timeout_of(settings.trainer.strategy)
        callbacks += [record, Ranks(lambda: self._identity(record.fingerprint), timeout)]
        callbacks += [ShownRows(), FinalMetrics(self._settings)]  # after the record, which truncates the curves
        if replies := self.config_init[str(self.subcommand)].held_out:
            callbacks.append(HeldOutReplies(replies))
        if settings.trainer.enable_progress_bar is not False:
            callbacks.append(Progress())
        if self.subcommand != "fit" or settings.trainer.enable_checkpointing is False or settings.trainer.fast_dev_run:
            return [*callbacks, *chosen]
        return [*callbacks, *best_before_newest(chosen), StopSignals(timeout)]

    def _record_full_checkpointing(self) -> None:
        """Write that all layers are checkpointed into the configuration of the run, and of its next checkpoints."""
        settings = self.config["fit"]
        settings.model.checkpointing = "full"
        self.writer.config = self._config_text()
        logger = self.trainer.logger  # its folder: trainer.log_dir waits for the other ranks
        file = Path((logger and logger.log_dir) or self.trainer.default_root_dir) / CONFIG
        if self.trainer.is_global_zero and file.is_file():
            self._parser("fit").save(settings, file, skip_none=False, overwrite=True, multifile=False)

    def fingerprint(self) -> dict[str, str]:
        """What the result depends on: settings, base and data. Downloads base and data if they are missing."""
        model: ChatGLM2LoRA = self.model
        rows: dict[str, str] = self.datamodule.fingerprint()
        return self._settings() | model.frozen_base.fingerprint() | model.initial_adapter.fingerprint() | rows

    def _settings_alone(self) -> dict[str, str]:
        return fingerprint_of_settings(yaml.safe_load(self._config_text()))

    def _settings(self) -> dict[str, str]:
        settings = self._settings_alone()
        settings[DEVICE] = self.trainer.strategy.root_device.type
        if TOKENS_PER_STEP not in settings:
            accumulated = self.config[str(self.subcommand)].trainer.accumulate_grad_batches
            settings[MICRO_BATCHES] = str(self.trainer.world_size * accumulated)
        return keep_accumulation(self.saved, settings)

    def _identity(self, fingerprint: dict[str, str]) -> dict[str, str]:
        """What must be the same on every rank."""
        checkpoint = self.config_init["fit"].ckpt_path
        of_packages = dict(text.rsplit(" ", 1) for text in versions().split(", "))
        return fingerprint | of_packages | {"checkpoint": Path(checkpoint).name if checkpoint else "none"}

    def before_fit(self) -> None:
        """Find the run to resume, and refuse what cannot run here before anything large is downloaded.

        Raises:
            RunFinished: the run to resume has finished.
            MachineError: another process is writing the run.
            MissingFileError: no such checkpoint, or no such base.
            CheckpointError: the checkpoint is of a run with other settings.
            MachineError: the base does not fit this machine, or the run folder is not writable.
            SettingError: a precision that the model does not support.
        """
        say_start(self.config["fit"], self.trainer, self.choice)
        self._check_run()
        start = self._run_start().find()
        if start.folder:
            checkpoint = start.checkpoint.name if start.checkpoint else "its beginning"
            log.info("resuming %s from %s", from_here(start.folder), checkpoint)
        self._share_steps(start.fingerprint)
        self.config_init["fit"]["ckpt_path"] = start.checkpoint
        if self.trainer.local_rank == 0:
            os.environ[LAUNCHER] = str(os.getpid())
            share_choice(self.config["fit"])

    def _run_start(self) -> RunStart:
        settings = self.config[str(self.subcommand)]
        return RunStart(self.trainer, settings, self._settings, self.fingerprint, self.held)

    def _share_steps(self, saved: dict[str, str]) -> None:
        """Keep the optimizer steps of the resumed run if the number of devices has changed."""
        self.saved = saved
        if MICRO_BATCHES in saved and saved[MICRO_BATCHES] == self._settings().get(MICRO_BATCHES):
            keep_optimizer_steps(self.trainer, saved)
        elif TOKENS_PER_STEP in saved:
            rescale_intervals(self.trainer, int(saved[ACCUMULATE]))

    def _check_run(self) -> None:
        precision = str(self.config[str(self.subcommand)].trainer.precision or "32-true")
        base, device = self.model.frozen_base, self.trainer.strategy.root_device
        check_precision(precision, device.type)  # before the base's config, which may be on the Hub
        base.check(self.model.initial_adapter, precision, device)
        check_run(
            base.config,
            precision,
            device,
            sharded_over=self.trainer.world_size if base.sharded else 1,
            quantization=base.quantization,
        )

    def before_predict(self) -> None:
        """Find the checkpoint, and refuse what cannot run here before anything large is downloaded.

        Raises:
            KyonError: as `before_fit`.
        """
        self._check_run()
        if (path := self.config[str(self.subcommand)].ckpt_path) is not None:
            checkpoint = find_checkpoint(path, self.trainer)
            self.config_init[str(self.subcommand)]["ckpt_path"] = checkpoint
            self._ask_as_trained(Path(checkpoint).with_suffix(""))
        self._run_start().create_next()

    before_validate = before_test = before_predict

    def _ask_as_trained(self, adapter: Path) -> None:
        """Encode the rows with the wording that the adapter was trained with, whatever the settings say."""
        data: DialogueDataModule = self.datamodule
        trained, given = read_prompt_format(adapter), data.encoding
        if trained is None:
            return
        used = replace(given, template=trained.template, train_turns=trained.train_turns)
        if used != given:
            data.encoding = used
            own, other = (f"data.template {one.template}, data.train_turns {one.train_turns}" for one in (used, given))
            log.warning("the adapter was trained with %s, which is used; not %s", own, other)

    def after_fit(self) -> None:
        """Log what was written where, and the next command."""
        run = from_here(self.trainer.log_dir or self.trainer.default_root_dir)  # on all ranks: it is broadcast
        if self.trainer.is_global_zero:
            of_demo = self.config["fit"].data.source in ("demo", ["demo"])
            say_where(self.trainer, run, ["--character", "demo"] if of_demo else character_option(self.prompt_format))


def best_before_newest(callbacks: list[Callback]) -> list[Callback]:
    """Move each StepCheckpoint behind the ModelCheckpoints, whose state of the same step it saves.

    Args:
        callbacks: of the config; a StepCheckpoint is added where there is none.
    """
    steps = [callback for callback in callbacks if isinstance(callback, StepCheckpoint)] or [StepCheckpoint()]
    others = [callback for callback in callbacks if not isinstance(callback, StepCheckpoint)]
    last_best = max((i for i, callback in enumerate(others) if isinstance(callback, ModelCheckpoint)), default=-1)
    return [*others[: last_best + 1], *steps, *others[last_best + 1 :]]


def timeout_of(strategy: Any) -> timedelta:
    """How long a rank waits for another one.

    Args:
        strategy: `trainer.strategy`, parsed.
    """
    if strategy == "auto":
        return DDP_TIMEOUT
    timeout = strategy.get("init_args.timeout") if isinstance(strategy, Namespace) else None
    return timeout or default_pg_timeout
