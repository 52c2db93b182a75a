"""The settings of fit that are `auto`, resolved before anything is made: by the resumed run, or for this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.data.batches.plan import PACKED
from kyon_pl.doctor.choice import choose, fits_device
from kyon_pl.doctor.cuts import AUTO_SETTINGS, CHECKPOINTING, COMPILE, auto_settings, step_cuts
from kyon_pl.doctor.device import Target, local_target
from kyon_pl.doctor.machine import why_not_compiled
from kyon_pl.errors import CheckpointError, SettingError
from kyon_pl.files import read_yaml_mapping
from kyon_pl.runs.fingerprint import ACCUMULATE, DEVICE, MICRO_BATCHES, TOKENS_PER_BATCH, TOKENS_PER_STEP
from kyon_pl.runs.resume import Run, find_similar_run, read_run, refuse_if_running, runs_in
from kyon_pl.training.base import read_base_config
from kyon_pl.training.callbacks.stop_signals import is_launched_rank

# environment variable with the choice of the process that launched the other ranks, which inherit it
CHOICE = "KYON_PL_CHOICE"
CONFIG = "config.yaml"
_KINDS: dict[str, Any] = {TOKENS_PER_BATCH: int, ACCUMULATE: int, CHECKPOINTING: int | str, COMPILE: bool}
_FIX = "Copy it again, or set the four numbers of the machine on the command line"


@dataclass(frozen=True)
class Recorded:
    """The values of a run that can be resumed.

    Attributes:
        folder: the run folder.
        values: by the name of the setting.
        finished: whether the run has finished, so that it only has to be recognized.
    """

    folder: Path
    values: Mapping[str, Any]
    finished: bool


def resolve_auto(settings: Namespace, fingerprint: Mapping[str, str]) -> list[str]:
    """Replace each `auto` by a value.

    A resumed run keeps its own values, unless another number of devices or a smaller GPU has to cut the optimizer
    steps differently.

    Args:
        settings: of fit, parsed; changed in place.
        fingerprint: of these settings, to find the run that is resumed.

    Returns:
        Lines that say what was chosen and why.

    Raises:
        SettingError: an optimizer step cannot be cut as the settings ask.
        KyonError: the base's configuration, or that of the resumed run, cannot be read.
    """
    if is_launched_rank() and CHOICE in os.environ:
        for name, value in json.loads(os.environ[CHOICE]).items():
            settings[name] = value
        return []
    target = local_target(settings.trainer)
    recorded = find_recorded(settings, {**fingerprint, DEVICE: target.device_type})
    lines = _settle_numbers(settings, recorded, target.devices)
    names = auto_settings(settings)
    if recorded and names and not recorded.finished and _can_keep(settings, recorded, target):
        for name in names:
            settings[name] = recorded.values[name]
        kept = ", ".join(f"{name} {str(settings[name]).lower()}" for name in names)
        return [*lines, f"auto: as in {recorded.folder.name}, a run with the same settings: {kept}"]
    if recorded and settings[COMPILE] == "auto":  # compiled layers round differently
        settings[COMPILE] = recorded.values[COMPILE]
    if not auto_settings(settings):
        return lines
    config = base_config(settings) if target.device_type == "cuda" else ChatGLM2Config()
    choice = choose(settings, config, target, why_not_compiled(target.capability) if target.capability else None)
    for name, value in choice.values.items():
        settings[name] = value
    return [*lines, *choice.lines]


def share_choice(settings: Namespace) -> None:
    """Put the values into the environment of the ranks that this process launches.

    Args:
        settings: of fit, resolved.
    """
    os.environ[CHOICE] = json.dumps({name: settings[name] for name in (*AUTO_SETTINGS, TOKENS_PER_STEP)})


def find_recorded(settings: Namespace, fingerprint: Mapping[str, str]) -> Recorded | None:
    """The values of the run that will be resumed; None for a new run.

    Args:
        settings: of fit, parsed.
        fingerprint: of these settings.

    Raises:
        CheckpointError: the record or the configuration of the run cannot be read.
        MachineError: the configuration is not whole, because another process has just started the same run.
    """
    run = _resumed_run(settings, fingerprint)
    if run is None or not (run.folder / CONFIG).is_file():
        return None
    try:
        return _read_recorded(run, settings)
    except CheckpointError:
        refuse_if_running(run.folder)
        raise


def _read_recorded(run: Run, settings: Namespace) -> Recorded:
    config = read_yaml_mapping(run.folder / CONFIG, _FIX)
    values = {name: _value(config, name) for name in AUTO_SETTINGS}
    for name, value in values.items():
        if not isinstance(value, _KINDS[name]):
            raise CheckpointError(f"{run.folder / CONFIG}: {name}", f"{value!r} is no value of it", _FIX)
    return Recorded(run.folder, values, run.finished_at_step is not None and not settings.ckpt_path)


def _value(config: Any, name: str) -> Any:
    for key in name.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _resumed_run(settings: Namespace, fingerprint: Mapping[str, str]) -> Run | None:
    folder, path = runs_folder(settings.trainer), settings.ckpt_path
    if path and path != "last":
        return read_run(Path(path).absolute().parent.parent)
    if folder is None or not (path or settings.auto_resume):
        return None
    if path:
        return next((run for run in runs_in(folder) if run.newest_checkpoint()), None)
    return find_similar_run(folder, fingerprint, without={*AUTO_SETTINGS, MICRO_BATCHES})


def runs_folder(trainer: Namespace) -> Path | None:
    """The folder that will hold the run folders; None if the logger has none, so that no run can be resumed.

    Args:
        trainer: the settings of the trainer.
    """
    logger = trainer.logger[0] if isinstance(trainer.logger, list) and len(trainer.logger) == 1 else trainer.logger
    if logger in (None, True):
        return Path(trainer.default_root_dir or ".").absolute() / "lightning_logs"
    if not isinstance(logger, Namespace) or not logger.class_path.endswith("TensorBoardLogger"):
        return None
    return Path(logger.init_args.save_dir).absolute() / (logger.init_args.name or "")


def _settle_numbers(settings: Namespace, recorded: Recorded | None, devices: int) -> list[str]:
    """Where batch and accumulation are both numbers and do not make `tokens_per_step`, decide which of them holds."""
    data, accumulate = settings.data, settings[ACCUMULATE]
    if data.batching not in PACKED or data.tokens_per_step is None or "auto" in (data.tokens_per_batch, accumulate):
        return []
    made = data.tokens_per_batch * accumulate * devices
    if made == data.tokens_per_step:
        return []
    if recorded and (data.tokens_per_batch, accumulate) == tuple(recorded.values[name] for name in AUTO_SETTINGS[:2]):
        settings[TOKENS_PER_BATCH] = settings[ACCUMULATE] = "auto"  # they are from the config.yaml of the resumed run
        return []
    line = (
        f"{TOKENS_PER_STEP}: {data.tokens_per_step:,} has no effect, because numbers that were set make steps of "
        f"{made:,} tokens ({accumulate} x {data.tokens_per_batch:,} on {devices} devices); to keep it, set "
        f"{ACCUMULATE} to auto"
    )
    settings[TOKENS_PER_STEP] = None
    return [line]


def _can_keep(settings: Namespace, recorded: Recorded, target: Target) -> bool:
    """Whether these devices can share the steps of the resumed run as it cut them, and have the memory for it."""
    kept = settings.clone()
    for name in auto_settings(settings):
        kept[name] = recorded.values[name]
    try:
        (cut,) = step_cuts(kept, target.devices)
    except SettingError:
        return False
    return target.device_type == "cpu" or fits_device(kept, cut, base_config(settings), target)


def base_config(settings: Namespace) -> ChatGLM2Config:
    """The configuration of the base. From the Hub, only `config.json` is downloaded.

    Args:
        settings: of fit.

    Raises:
        MissingFileError: there is no such base.
        SettingError: the configuration is not implemented.
    """
    return read_base_config(settings.model.base, settings.model.revision, settings.model.random_config)
