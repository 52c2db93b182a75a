"""How a checkpoint reaches the disk: whole or not at all, with the adapter as a PEFT folder beside it.

A checkpoint is the file `NAME.ckpt`, the folder `NAME`, and in it the marker `COMPLETE`, which records the optimizer
step, and size and SHA-256 of the file and of the adapter. All of it is written beside its place and synced; then the
folder gets its name, and last the file. So there is never a `NAME.ckpt` that a kill left half written.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from safetensors import SafetensorError

from kyon_pl.chatglm2.files import UNREADABLE, why_unreadable
from kyon_pl.disk import sync
from kyon_pl.errors import CheckpointError, MachineError
from kyon_pl.logs import from_here
from kyon_pl.runs.fingerprint import FINGERPRINT
from kyon_pl.runs.integrity import ADAPTER, CONTENTS, MARKER, check_contents, contents_of, size_and_sha256

log = logging.getLogger(__name__)

STOPPING = "stopping"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


class AdapterCheckpointIO(TorchCheckpointIO):
    """Writes `NAME.ckpt` and, beside it, the folder `NAME` with the PEFT adapter, the tokenizer's files and
    `config.yaml`.

    Lightning's own writing goes through a temporary folder that may lie on another file system, and a kill during
    that copy leaves an empty file; here all is written beside its place, synced and renamed.

    Args:
        write_adapter: writes the adapter in a checkpoint's `state_dict` into a folder.
        config: the resolved configuration as YAML text; it goes into the checkpoint and into the folder.
    """

    def __init__(self, write_adapter: Callable[[Mapping[str, torch.Tensor], Path], None], config: str) -> None:
        super().__init__()
        self.write_adapter = write_adapter
        self.config = config

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write file, folder and marker; Lightning calls this on one rank.

        Args:
            checkpoint: model and trainer state.
            path: of the file.
            storage_options: none is known to this writer.

        Raises:
            TypeError: `storage_options` were given.
            MachineError: the disk is full, or nothing may be written there. Older checkpoints are still whole.
        """
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__} takes no storage_options")
        file = Path(path)
        beside, folder_beside = _beside(file), _beside(file.with_suffix(""))
        whole = {**checkpoint, "config": self.config}
        whole[CONTENTS] = contents_of(whole)
        try:
            self._write(whole, file, beside, folder_beside)
        except (OSError, RuntimeError, SafetensorError) as error:
            remove_unfinished(file.parent)
            raise explain_disk_error(error, file) from error
        log.info("checkpoint: %s", from_here(file))

    def _write(self, checkpoint: dict[str, Any], file: Path, beside: Path, folder_beside: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = file.with_suffix("")
        remove_unfinished(file.parent)
        self.write_adapter(checkpoint["state_dict"], folder_beside)
        (folder_beside / "config.yaml").write_text(self.config, encoding="utf-8")
        torch.save(checkpoint, beside)
        marker = {
            "step": checkpoint["global_step"],
            "resumable": "optimizer_states" in checkpoint and not checkpoint.get(STOPPING),
            "checkpoint": size_and_sha256(beside),
            "adapter": size_and_sha256(folder_beside / ADAPTER),
        }
        (folder_beside / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
        for written in (beside, *folder_beside.iterdir(), folder_beside):
            sync(written)
        self.remove_checkpoint(file)  # an older one of this name
        folder_beside.rename(folder)
        beside.rename(file)
        sync(file.parent)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; see `read_checkpoint`.

        Args:
            path: of the file.
            map_location: where tensors go; the CPU if None.
            weights_only: whatever a caller says, no pickled object is read.

        Raises:
            CheckpointError: as `read_checkpoint`.
        """
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint: first its name, without which there is none; last what tells of a removal cut short."""
        file = Path(path)
        if file.exists():
            file.rename(_leaving(file))
        shutil.rmtree(file.with_suffix(""), ignore_errors=True)
        _leaving(file).unlink(missing_ok=True)


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, or elsewhere: tensors and plain values, never a pickled object.

    Raises:
        CheckpointError: the file is cut short, holds something else than tensors and plain values, or is not what was
            saved; what is missing, unexpected or altered is named.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(
            where=f"checkpoint {path}",
            found=f"it cannot be read ({why_unreadable(error)})",
            fix="Use an older checkpoint of the run; this one may be cut short",
        ) from error
    if not isinstance(checkpoint, dict):
        found = f"it holds a {type(checkpoint).__name__} in place of a run's state"
        raise CheckpointError(f"checkpoint {path}", found, "Use a checkpoint that kyon-pl fit has made")
    for part in ("state_dict", CONTENTS, FINGERPRINT):
        if not isinstance(checkpoint.get(part, {}), dict):
            raise CheckpointError(f"checkpoint {path}: {part}", "it is no dictionary", "Use another checkpoint")
    check_contents(checkpoint)
    return checkpoint


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed or failed save has left beside its place, and what a killed removal has not removed."""
    for path in folder.glob(_beside(Path("*")).name):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in folder.glob(_leaving(Path("*.ckpt")).name):
        adapter = path.with_name(path.name.removeprefix(".").removesuffix(".ckpt.removing"))
        shutil.rmtree(adapter, ignore_errors=True)
        path.unlink()


def write_whole(file: Path, text: str) -> None:
    """Write a text file so that no kill and no power loss leaves a part of it."""
    beside = _beside(file)
    beside.write_text(text, encoding="utf-8")
    sync(beside)
    beside.replace(file)
    sync(file.parent)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.writing")


def _leaving(path: Path) -> Path:
    return path.with_name(f".{path.name}.removing")


def explain_disk_error(error: Exception, file: Path) -> MachineError:
    """The error of ours for one that came of writing a file; not every writer passes on what the system said."""
    folder = _existing(file.absolute().parent)
    free_bytes = shutil.disk_usage(folder).free
    number, said = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
    last = "the same command then goes on from the last checkpoint, which is still whole"
    if number in (errno.ENOSPC, errno.EDQUOT) or (number is None and free_bytes < 1 << 20):
        found = f"the disk is full ({free_bytes / 2**20:,.1f} MiB are free)"
        return MachineError(str(file), found, f"Make room there; {last}")
    found = f"it cannot be written ({said or str(error).splitlines()[0]})"
    return MachineError(str(file), found, f"Check the disk and the rights of {folder}; {last}")


def check_writable(folder: Path) -> None:
    """Make a folder, and refuse one where nothing may be written; TensorBoard's writer would fail later, in a thread of
    its own.

    Raises:
        MachineError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_disk_error(error, folder / "checkpoints") from error
    if not os.access(folder, os.W_OK):
        raise explain_disk_error(PermissionError(errno.EACCES, "nothing may be written there"), folder / "checkpoints")


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
