"""Which adapter a word means: one rule for chat, merge and push."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch

from kyon_pl.errors import CheckpointError, MissingFileError, SettingError
from kyon_pl.hub.download import ADAPTER_FILES, fetch_model
from kyon_pl.logs import from_here
from kyon_pl.runs.integrity import fault_of_adapter, fault_of_checkpoint, read_marker

log = logging.getLogger(__name__)

Which = Literal["best", "last"]
SETTINGS = "adapter_config.json"
CHECKPOINTS = "checkpoints"
LOGS = "lightning_logs"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_adapter(word: str | None, which: Which = "best", revision: str | None = None) -> Path:
    """The folder of the adapter that a word means.

    Args:
        word: a PEFT folder; a checkpoint file `NAME.ckpt`, whose adapter is the folder `NAME` beside it; a run folder;
            a folder of runs, of which the newest with a whole checkpoint is meant; or the id of a repository on the
            Hub. None: the runs in `lightning_logs`.
        which: of a run, its `best` adapter by what its ModelCheckpoint watched, or the `last` by optimizer step.
        revision: branch, tag or commit of the repository on the Hub.

    Returns:
        A folder with `adapter_config.json`, and the weights beside it.

    Raises:
        MissingFileError: there is nothing of that name, no adapter in it, or none of that kind.
        CheckpointError: the checkpoint that is meant is not what was saved.
        SettingError: as `hub.fetch_model` raises it.
        MachineError: as `hub.fetch_model` raises it.
    """
    path = Path(os.path.expanduser(word or LOGS))  # noqa: PTH111 (Path's raises at `~nobody`)
    local = path.exists() or word is None or path.suffix == ".ckpt" or not _HUB_ID.fullmatch(word)
    if not local:
        return _on_hub(str(word), revision)
    if revision:
        log.warning("%s is on this machine: revision %s is not looked at", path, revision)
    if (path / SETTINGS).is_file():
        return path
    if path.suffix == ".ckpt":
        return _beside(path)
    return _of_run(_run_in(path), which)


def adapter_base(folder: Path) -> str:
    """The base that an adapter was made for: a Hub id or a folder, as its settings name it.

    Args:
        folder: what `find_adapter` returned.

    Raises:
        CheckpointError: `adapter_config.json` is not JSON, or names no base.
    """
    try:
        base = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        base, said = None, f"it cannot be read ({type(error).__name__}: {error})"
    else:
        said = "it names no base (base_model_name_or_path)"
    if not (base and isinstance(base, str)):
        raise CheckpointError(str(folder / SETTINGS), said, "Name the base yourself, or use another adapter")
    return base


def base_with_weights(base: str | None, folder: Path) -> str:
    """The base to put an adapter on.

    Args:
        base: a Hub id or a folder; None: the one that the adapter names.
        folder: what `find_adapter` returned.

    Raises:
        SettingError: random weights, which a debugging run trains on.
        CheckpointError: as `adapter_base` raises it.
    """
    name = base or adapter_base(folder)
    if name == "random":
        fix = "Give --base: a folder or Hub id with weights"
        raise SettingError("base", "the adapter was trained on random weights, which lie nowhere", fix)
    return name


def best_checkpoint(run: Path, newest: Path) -> Path:
    """The checkpoint that a run's ModelCheckpoint found best, by the state that its newest checkpoint holds.

    Args:
        run: its folder.
        newest: its newest whole checkpoint.

    Raises:
        MissingFileError: there was no validation yet, or nothing that watches one.
        CheckpointError: the newest cannot be read, or the best is not what was saved.
    """
    states = [state for state in _callback_states(newest) if state.get("best_model_score") is not None]
    if not states:
        found = f"{newest.name} knows of no best one: no validation yet, or no ModelCheckpoint with a `monitor`"
        raise MissingFileError(str(run), found, "Use --which last")
    best = newest.parent / str(states[0]["best_model_path"])
    if fault := fault_of_checkpoint(best):
        raise CheckpointError(str(best), f"it was the best by {states[0]['monitor']}, but {fault}", "Use --which last")
    score = float(states[0]["best_model_score"])
    log.info("adapter: %s, the best by %s (%.4f)", from_here(best.with_suffix("")), states[0]["monitor"], score)
    return best


def newest_checkpoint(run: Path) -> Path | None:
    """The whole checkpoint with the most optimizer steps behind it; those that are not whole are passed over aloud."""
    whole: list[tuple[int, Path]] = []
    for file in sorted((run / CHECKPOINTS).glob("*.ckpt")):
        if fault := fault_of_checkpoint(file):
            log.warning("checkpoint %s is skipped: %s", from_here(file), fault)
        else:
            whole.append((read_marker(file.with_suffix(""))["step"], file))
    return max(whole)[1] if whole else None


def _of_run(run: Path, which: Which) -> Path:
    newest = newest_checkpoint(run)
    if newest is None:
        raise MissingFileError(str(run), "no whole checkpoint in it", "Wait for its first one, or name another run")
    if which == "best":
        return best_checkpoint(run, newest).with_suffix("")
    folder = newest.with_suffix("")
    log.info("adapter: %s, the last of its run", from_here(folder))
    return folder


def _run_in(path: Path) -> Path:
    """The run folder itself, or the newest with a whole checkpoint in a folder of runs."""
    if (path / CHECKPOINTS).is_dir():
        return path
    folders = [folder for folder in path.iterdir() if folder.is_dir()] if path.is_dir() else []
    numbered = [(int(match[1]), run) for run in folders if (match := re.fullmatch(r"version_(\d+)", run.name))]
    for _, run in sorted(numbered, reverse=True):
        if newest_checkpoint(run):
            return run
    if numbered:
        raise MissingFileError(str(path), "none of its runs has a whole checkpoint", "Train one: kyon-pl fit")
    found = "neither an adapter, a run nor a folder of runs" if path.exists() else "not there"
    fix = "Name a PEFT folder, a NAME.ckpt, a run such as lightning_logs/version_0, or a Hub id such as USER/NAME"
    raise MissingFileError(str(path), found, fix)


def _beside(file: Path) -> Path:
    """The adapter of a checkpoint file, once it is known to be what was saved."""
    folder = file.with_suffix("")
    if not file.is_file() and not folder.is_dir():
        raise MissingFileError(str(file), "there is no such checkpoint", "Look into the run's folder `checkpoints`")
    if fault := fault_of_adapter(folder):
        raise CheckpointError(str(file), f"no whole adapter lies beside it: {fault}", "Use another checkpoint")
    return folder


def _on_hub(repo: str, revision: str | None) -> Path:
    folder = fetch_model(repo, revision, patterns=ADAPTER_FILES)
    if not (folder / SETTINGS).is_file():
        raise MissingFileError(repo, f"it holds no {SETTINGS}", "Name the repository of a PEFT adapter")
    return folder


def _callback_states(checkpoint: Path) -> list[dict[str, Any]]:
    """What the callbacks of a run saved; tensors and plain values are read, never a pickled object."""
    try:
        states = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["callbacks"].values()
    except (RuntimeError, UnpicklingError, EOFError, KeyError, AttributeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(str(checkpoint), f"it cannot be read ({said})", "Use --which last") from error
    return [state for state in states if isinstance(state, dict)]
