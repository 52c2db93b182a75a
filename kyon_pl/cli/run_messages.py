"""What a run logs at its start and at its end."""

from __future__ import annotations

import logging
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from kyon_pl import __version__
from kyon_pl.data.batches.plan import PACKED
from kyon_pl.logs import from_here
from kyon_pl.runs.resume import Start
from kyon_pl.training.callbacks import StepCheckpoint
from kyon_pl.training.loggers import where_logged

log = logging.getLogger(__name__)


def say_start(settings: Namespace, trainer: Trainer, choice: list[str]) -> None:
    """Log versions, config files, devices, batches, and what was chosen for this machine.

    Args:
        settings: of fit, resolved.
        trainer: of the run.
        choice: lines about the settings that were `auto`.
    """
    log.info("kyon-pl fit: %s", versions())
    files = ", ".join(str(from_here(str(file))) for file in settings.config or []) or "no file, defaults"
    devices = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
    log.info("config: %s; %s, %s, seed %s", files, devices, trainer.precision, settings.seed_everything)
    data, accumulated = settings.data, settings.trainer.accumulate_grad_batches
    size = f"{data.tokens_per_batch:,} tokens" if data.batching in PACKED else f"{data.rows_per_batch} rows"
    log.info("batches: %s, %s each, %d of them an optimizer step and device", data.batching, size, accumulated)
    for line in choice:
        log.info("%s", line)


def say_where(trainer: Trainer, run: Path, character: Sequence[str]) -> None:
    """Log what was written where, and the next commands.

    Args:
        trainer: of the run.
        run: its folder.
        character: the words of `chat` that play a role.
    """
    callbacks = trainer.checkpoint_callbacks
    best = [c for c in callbacks if isinstance(c, ModelCheckpoint) and c.best_model_path]
    last = [file for c in callbacks if isinstance(c, StepCheckpoint) and (file := c.newest(trainer))]
    for callback in best:
        folder = from_here(callback.best_model_path).with_suffix("")
        log.info("best adapter: %s (%s %.4f)", folder, callback.monitor, callback.best_model_score)
    for file in last[-1:]:
        log.info("last adapter: %s", from_here(file).with_suffix(""))
    for logger in trainer.loggers:
        if place := where_logged(logger, run.parent):
            log.info("%s", place)
    for file in ([Path(callback.best_model_path) for callback in best] + last)[:1]:
        log.info("next: %s", shlex.join(["kyon-pl", "chat", "--adapter", str(run), *character]))
        log.info("next: kyon-pl predict --config %s --ckpt_path %s", run / "config.yaml", from_here(file))


def finished(start: Start) -> str:
    """The message for a run that has finished, with the options to train it further.

    Args:
        start: with the folder of that run.
    """
    assert start.folder is not None
    adapter = f", adapter {from_here(start.checkpoint.with_suffix(''))}" if start.checkpoint else ""
    return (
        f"finished already: {from_here(start.folder)}{adapter}. To train it further, add --ckpt_path last "
        "--allow_changed_settings true --trainer.max_epochs N; to train anew, add --auto_resume false"
    )


def versions() -> str:
    """The versions of this package, of Python and of the libraries that results depend on."""
    libraries = (f"{name} {version(name)}" for name in ("torch", "lightning", "transformers", "peft"))
    return ", ".join([f"kyon_pl {__version__}", *libraries, f"Python {platform.python_version()}"])
