"""Finding an adapter by name, for chat, merge and push."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Literal

import torch

from kyon_pl.chatglm2.files import UNREADABLE, why_unreadable
from kyon_pl.demo import EMBEDDED, is_folder
from kyon_pl.disk import expand_home
from kyon_pl.errors import CheckpointError, MissingFileError, SettingError
from kyon_pl.files import entry, is_of_kind, read_json_object, shorten
from kyon_pl.hub.download import ADAPTER_FILES, fetch_model
from kyon_pl.hub.modelscope import is_modelscope
from kyon_pl.logs import from_here
from kyon_pl.runs.integrity import CHECKPOINTS, fault_of_adapter, fault_of_checkpoint, newest_checkpoint

log = logging.getLogger(__name__)

Which = Literal["best", "last"]
SETTINGS = "adapter_config.json"
LOGS = "lightning_logs"
GIVE_BASE = "Name the folder where it is now, or its Hub id, with --base"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_adapter(name: str | None, which: Which | None = "best", revision: str | None = None) -> Path:
    """Find the folder of an adapter.

    Args:
        name: a PEFT folder; a checkpoint file `NAME.ckpt`, whose adapter is in the folder `NAME`; a run folder; a
            folder of runs, of which the newest with a complete checkpoint is used; or a Hub id. None: the runs in
            `lightning_logs`.
        which: for a run, its `best` adapter by the metric of its ModelCheckpoint, or its `last` by optimizer step.
            None: the best, or the last if nothing was validated.
        revision: branch, tag or commit on the Hub.

    Returns:
        A folder with `adapter_config.json` and the weights.

    Raises:
        MissingFileError: there is no such file, or no such adapter in it.
        CheckpointError: the checkpoint is not what was saved.
        SettingError: as `hub.fetch_model` raises it.
        MachineError: as `hub.fetch_model` raises it.
    """
    path = expand_home(name or LOGS)
    local = path.exists() or name is None or path.suffix == ".ckpt" or not _HUB_ID.fullmatch(name)
    if not local:
        return _adapter_on_hub(str(name), revision)
    if revision:
        log.warning("%s is a local path: revision %s is ignored", path, revision)
    if (path / SETTINGS).is_file():
        return path
    if path.suffix == ".ckpt":
        return _adapter_of_checkpoint(path)
    return _adapter_of_run(_find_run(path), which)


def adapter_base(folder: Path) -> str:
    """The base that an adapter was trained on: the Hub id or folder in its settings.

    What was a folder when it was recorded is never looked up on the Hub.

    Args:
        folder: folder of the adapter, from `find_adapter`.

    Raises:
        CheckpointError: `adapter_config.json` cannot be read, or names no base.
        MissingFileError: the base was a folder, which is not on this machine.
    """
    file, key, fix = folder / SETTINGS, "base_model_name_or_path", "Give the base with --base, or use another adapter"
    content = read_json_object(file, fix)
    if not content.get(key):
        raise CheckpointError(str(file), f"it names no base ({key})", fix)
    base = entry(content, key, str, file, fix)
    if base in EMBEDDED or is_folder(base) or is_modelscope(base):
        return base
    if found := _folder_from_elsewhere(base, folder):
        log.info("base: %s, which the adapter names relative to another folder", from_here(found))
        return str(found)
    if Path(base).is_absolute() or not _HUB_ID.fullmatch(base):
        raise MissingFileError(f"{file}: {key}", f"there is no folder {shorten(base)} on this machine", GIVE_BASE)
    return base


def _folder_from_elsewhere(base: str, adapter: Path) -> Path | None:
    """The folder that an adapter of an earlier version names relative to where the run was started.

    Args:
        base: as recorded.
        adapter: the adapter's folder. The run was usually started in one of the folders above it.
    """
    if Path(base).is_absolute() or base.startswith("~"):
        return None
    places = (parent / base for parent in adapter.absolute().parents)
    return next((place for place in places if is_folder(f"{place}/") and (place / "config.json").is_file()), None)


def base_with_weights(base: str | None, folder: Path) -> str:
    """The base to load an adapter onto.

    Args:
        base: Hub id or folder; None: the base that the adapter names.
        folder: folder of the adapter, from `find_adapter`.

    Raises:
        SettingError: the base is `random`, which is not on disk.
        CheckpointError: as `adapter_base` raises it.
    """
    name = base or adapter_base(folder)
    if name == "random":
        fix = "Give --base: a folder or Hub id with weights"
        raise SettingError("base", "the adapter was trained on random weights, which are not saved", fix)
    return name


def best_checkpoint(run: Path, newest: Path) -> Path:
    """The best checkpoint of a run, according to the ModelCheckpoint state in its newest checkpoint.

    Args:
        run: the run folder.
        newest: the newest complete checkpoint of the run.

    Raises:
        MissingFileError: the run has no best checkpoint, because nothing was validated or monitored.
        CheckpointError: the newest checkpoint cannot be read, or the best one is not what was saved.
    """
    states = _best_states(newest)
    if not states:
        found = f"this run has no best checkpoint up to {newest.name}: no validation, or no ModelCheckpoint `monitor`"
        raise MissingFileError(str(run), found, "Use --which last")
    path, monitor, score = (states[0].get(key) for key in ("best_model_path", "monitor", "best_model_score"))
    score = score.item() if isinstance(score, torch.Tensor) and score.numel() == 1 else score
    if not (isinstance(path, str) and is_of_kind(score, float)):
        raise CheckpointError(f"{newest}: callbacks", "the state of its ModelCheckpoint is damaged", "Use --which last")
    best = newest.parent / path
    if fault := fault_of_checkpoint(best):
        raise CheckpointError(str(best), f"it is the best by {monitor}, but {fault}", "Use --which last")
    log.info("adapter: %s, the best by %s (%.4f)", from_here(best.with_suffix("")), monitor, score)
    return best


def _best_states(newest: Path) -> list[dict[str, Any]]:
    """The states of ModelCheckpoints that have a best checkpoint; empty if nothing was validated or monitored."""
    return [state for state in _callback_states(newest) if state.get("best_model_score") is not None]


def _adapter_of_run(run: Path, which: Which | None) -> Path:
    newest = newest_checkpoint(run / CHECKPOINTS, resumable=False)
    if newest is None:
        raise MissingFileError(
            str(run), "it has no complete checkpoint yet", "Wait for the first one, or name another run"
        )
    if which == "best" or (which is None and _best_states(newest)):
        return best_checkpoint(run, newest).with_suffix("")
    folder = newest.with_suffix("")
    why = ", which has no best one, because nothing was validated" if which is None else ""
    log.info("adapter: %s, the last of the run%s", from_here(folder), why)
    return folder


def _find_run(path: Path) -> Path:
    """The run folder itself, or the newest run with a complete checkpoint in a folder of runs."""
    if (path / CHECKPOINTS).is_dir():
        return path
    folders = [folder for folder in path.iterdir() if folder.is_dir()] if path.is_dir() else []
    numbered = [(int(match[1]), run) for run in folders if (match := re.fullmatch(r"version_(\d+)", run.name))]
    for _, run in sorted(numbered, reverse=True):
        if newest_checkpoint(run / CHECKPOINTS, resumable=False):
            return run
    if numbered:
        raise MissingFileError(str(path), "none of its runs has a complete checkpoint", "Train one: kyon-pl fit")
    found = "not an adapter, a run or a folder of runs" if path.exists() else "no such file or folder"
    fix = "Name a PEFT folder, a NAME.ckpt, a run such as lightning_logs/version_0, or a Hub id such as USER/NAME"
    raise MissingFileError(str(path), found, fix)


def _adapter_of_checkpoint(file: Path) -> Path:
    folder = file.with_suffix("")
    if not file.is_file() and not folder.is_dir():
        raise MissingFileError(str(file), "there is no such checkpoint", "See the folder `checkpoints` of the run")
    if fault := fault_of_adapter(folder):
        raise CheckpointError(str(file), f"its adapter is not complete: {fault}", "Use another checkpoint")
    log.info("adapter: %s, saved with %s, which itself is not read", from_here(folder), file.name)
    if fault := fault_of_checkpoint(file):
        log.warning("training cannot be resumed from this checkpoint: %s", fault)
    return folder


def _adapter_on_hub(repo: str, revision: str | None) -> Path:
    folder = fetch_model(repo, revision, patterns=ADAPTER_FILES)
    if not (folder / SETTINGS).is_file():
        raise MissingFileError(repo, f"it has no {SETTINGS}", "Name the repository of a PEFT adapter")
    return folder


def _callback_states(checkpoint: Path) -> list[dict[str, Any]]:
    """The callback states in a checkpoint of tensors and plain values; pickled objects are refused."""
    fix = "Use --which last"
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE as error:
        raise CheckpointError(str(checkpoint), f"it cannot be read ({why_unreadable(error)})", fix) from error
    states = content.get("callbacks") if isinstance(content, dict) else None
    if not isinstance(states, dict):
        raise CheckpointError(f"{checkpoint}: callbacks", "it is missing, or not a dictionary", fix)
    return [state for state in states.values() if isinstance(state, dict)]
