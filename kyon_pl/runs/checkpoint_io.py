"""Atomic writing and safe reading of checkpoints, each with its adapter as a PEFT folder beside it.

A checkpoint is the file `NAME.ckpt` and the folder `NAME`. The folder holds the marker `COMPLETE`, with the optimizer
step and with size and SHA-256 of file and adapter. Both are written under temporary names and synced; then the folder
is renamed, and the file last. So a kill never leaves an incomplete `NAME.ckpt`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.trainer.connectors import checkpoint_connector
from safetensors import SafetensorError

from kyon_pl.chatglm2.files import UNREADABLE, why_unreadable
from kyon_pl.disk import sync, temporary
from kyon_pl.errors import CheckpointError, KyonError, MachineError, MissingFileError, SettingError
from kyon_pl.files import LIBRARY_ERRORS, entry, fault_of_values, shorten
from kyon_pl.logs import from_here
from kyon_pl.runs.fingerprint import FINGERPRINT
from kyon_pl.runs.integrity import (
    ADAPTER,
    CHECKSUMS,
    FORMAT_VERSION,
    MARKER,
    check_checksums,
    check_format_version,
    checksums,
    flatten,
    size_and_sha256,
)
from kyon_pl.runs.prompt_format import PromptFormat, write_prompt_format

log = logging.getLogger(__name__)

STOPPING = "stopping"
_OF_FIT = "Use a checkpoint that kyon-pl fit wrote"
_KINDS: dict[str, type] = {
    **dict.fromkeys(("state_dict", CHECKSUMS, FINGERPRINT, "loops", "callbacks", "hyper_parameters"), dict),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list),
    **dict.fromkeys(("epoch", "global_step"), int),
    "pytorch-lightning_version": str,
}


class AdapterCheckpointIO(TorchCheckpointIO):
    """Writes `NAME.ckpt` and the folder `NAME`: PEFT adapter, tokenizer's files, `config.yaml`, `prompt_format.yaml`.

    Lightning itself writes to a temporary folder, possibly on another file system, and a kill during the copy leaves an
    incomplete file. Here everything is written in the same folder, synced and renamed.

    Args:
        write_adapter: writes the adapter in a checkpoint's `state_dict` into a folder.
        config: the resolved configuration as YAML; stored in the checkpoint and in the folder.
        prompt_format: how the prompts of the run are written; None: it is not kept.
    """

    def __init__(
        self,
        write_adapter: Callable[[Mapping[str, torch.Tensor], Path], None],
        config: str,
        prompt_format: PromptFormat | None = None,
    ) -> None:
        super().__init__()
        self.write_adapter = write_adapter
        self.config = config
        self.prompt_format = prompt_format

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write file, folder and marker; Lightning calls this on one rank.

        Args:
            checkpoint: model and trainer state.
            path: path of the file.
            storage_options: not supported.

        Raises:
            TypeError: `storage_options` is not None.
            MachineError: the disk is full or not writable. Older checkpoints stay complete.
            SettingError: a folder of this name has files from elsewhere.
        """
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__} takes no storage_options")
        file = Path(path)
        temporary_file, temporary_folder = temporary(file), temporary(file.with_suffix(""))
        complete = {**checkpoint, "config": self.config, "format_version": FORMAT_VERSION}
        complete[CHECKSUMS] = checksums(complete)
        try:
            self._write(complete, file, temporary_file, temporary_folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            remove_unfinished(file.parent)
            raise explain_disk_error(error, file) from error
        log.info("checkpoint: %s", from_here(file))

    def _write(self, checkpoint: dict[str, Any], file: Path, temporary_file: Path, temporary_folder: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = file.with_suffix("")
        remove_unfinished(file.parent)
        self.write_adapter(checkpoint["state_dict"], temporary_folder)
        (temporary_folder / "config.yaml").write_text(self.config, encoding="utf-8")
        if self.prompt_format:
            write_prompt_format(self.prompt_format, temporary_folder)
        torch.save(checkpoint, temporary_file)
        check_readable(checkpoint, temporary_file)
        marker = {
            "format_version": FORMAT_VERSION,
            "step": checkpoint["global_step"],
            "resumable": "optimizer_states" in checkpoint and not checkpoint.get(STOPPING),
            "checkpoint": size_and_sha256(temporary_file),
            "adapter": size_and_sha256(temporary_folder / ADAPTER),
        }
        (temporary_folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
        for written in (temporary_file, *temporary_folder.iterdir(), temporary_folder):
            sync(written)
        check_ours(folder, temporary_folder)
        self.remove_checkpoint(file)  # an older checkpoint of the same name
        temporary_folder.rename(folder)
        temporary_file.rename(file)
        sync(file.parent)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; see `read_checkpoint`.

        Args:
            path: path of the file.
            map_location: device of the tensors; the CPU if None.
            weights_only: ignored; pickled objects are never read.

        Raises:
            CheckpointError: as `read_checkpoint`.
        """
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove file and folder. The file is renamed first, so that an interrupted removal can be completed later."""
        file = Path(path)
        if file.exists():
            file.rename(_removed(file))
        shutil.rmtree(file.with_suffix(""), ignore_errors=True)
        _removed(file).unlink(missing_ok=True)


def check_readable(checkpoint: Mapping[str, Any], written: Path) -> None:
    """Check that a written checkpoint holds no pickled objects, which would never be read again.

    Args:
        checkpoint: its content.
        written: its file, which has a temporary name still.

    Raises:
        SettingError: it names what holds the object.
    """
    if not torch.serialization.get_unsafe_globals_in_checkpoint(written):
        return
    remove_unfinished(written.parent)
    plain = (torch.Tensor, str, int, float, bool, bytes, type(None), dict, list, tuple)
    names = [name for name, value in flatten(checkpoint, "") if type(value) not in plain]
    where = f"checkpoint state {(names or ['?'])[0].removeprefix('.')}"
    found = "it is an object of another kind than tensors and plain values, and would never be read again"
    raise SettingError(where, found, "Let the callback or the module that adds it save plain values")


def load_plain(path: str | os.PathLike[str], map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint of this package or of a plain Trainer: tensors and plain values; pickled objects are refused.

    Args:
        path: path of the file.
        map_location: device of the tensors; the CPU if None.

    Raises:
        CheckpointError: the file is truncated, holds other objects, or a value has another type than it should.
        MissingFileError: there is no such file.
    """
    if not os.path.isfile(path):  # noqa: PTH113 (of any type of path)
        raise MissingFileError(f"checkpoint {path}", "there is no such file", "Correct the path")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(
            where=f"checkpoint {path}",
            found=f"it cannot be read ({why_unreadable(error)})",
            fix="Use an older checkpoint of the run; this one may be truncated",
        ) from error
    if not isinstance(checkpoint, dict):
        found = f"it holds a {type(checkpoint).__name__} instead of a dictionary"
        raise CheckpointError(f"checkpoint {path}", found, _OF_FIT)
    if fault := fault_of_values(checkpoint):
        raise CheckpointError(f"checkpoint {path}", fault, _OF_FIT)
    for key in (*(_KINDS.keys() & checkpoint.keys()), "state_dict"):
        entry(checkpoint, key, _KINDS[key], f"checkpoint {path}", _OF_FIT)
    for name, value in checkpoint["state_dict"].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            found = f"it is {shorten(value)}, and not a tensor"
            raise CheckpointError(f"checkpoint {path}: state_dict.{name}", found, _OF_FIT)
    return checkpoint


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint that the command line has written; pickled objects are refused.

    Args:
        path: path of the file.
        map_location: device of the tensors; the CPU if None.

    Raises:
        CheckpointError: the file is truncated, holds other objects, has no list of its contents, is of a newer
            kyon_pl, or is not what was saved; the message names the state that is missing, unexpected, altered or of
            another type.
    """
    checkpoint = load_plain(path, map_location)
    entry(checkpoint, CHECKSUMS, _KINDS[CHECKSUMS], f"checkpoint {path}", _OF_FIT)
    check_format_version(checkpoint, Path(path))
    check_checksums(checkpoint)
    return checkpoint


def check_ours(folder: Path, replacement: Path) -> None:
    """Check that a folder to replace is of a checkpoint: complete, or a part of what will replace it.

    Args:
        folder: need not exist.
        replacement: the complete folder.

    Raises:
        SettingError: the folder has files from elsewhere.
    """
    others = sorted(path.name for path in folder.glob("*") if not (replacement / path.name).exists())
    if others and not (folder / MARKER).is_file():
        remove_unfinished(folder.parent)
        found = f"it has other files ({', '.join(others[:3])}), and a checkpoint of this name would replace it"
        raise SettingError(str(folder), found, "Set another dirpath or filename in the callback that saves checkpoints")


@contextmanager
def restoring_explained() -> Iterator[None]:
    """Turn an error while Lightning restores a checkpoint into a CheckpointError.

    The values in a checkpoint belong to Lightning, its loops and callbacks, which take them without a check.

    Raises:
        CheckpointError: one of `LIBRARY_ERRORS` was raised while a checkpoint was restored.
    """
    try:
        yield
    except KyonError:
        raise
    except LIBRARY_ERRORS as error:
        if isinstance(error, torch.OutOfMemoryError) or not _raised_while_restoring(error):
            raise
        found = f"Lightning cannot restore it: {type(error).__name__}: {shorten(str(error))}"
        raise CheckpointError("--ckpt_path", found, _OF_FIT) from error


def _raised_while_restoring(error: BaseException) -> bool:
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [code.co_name for code in codes if code.co_filename == checkpoint_connector.__file__]
    return any(name.lstrip("_").startswith(("restore", "resume")) for name in names)


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files of an interrupted save, and complete an interrupted removal."""
    for path in folder.glob(temporary(Path("*")).name):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in folder.glob(_removed(Path("*.ckpt")).name):
        adapter = path.with_name(path.name.removeprefix(".").removesuffix(".ckpt.removing"))
        shutil.rmtree(adapter, ignore_errors=True)
        path.unlink()


def _removed(path: Path) -> Path:
    return path.with_name(f".{path.name}.removing")


def explain_disk_error(error: Exception, file: Path) -> MachineError:
    """Convert an error of writing a file to a MachineError. Not every writer passes on the system's error number."""
    folder = _existing(file.absolute().parent)
    free_bytes = shutil.disk_usage(folder).free
    number, reason = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
    resume = "the same command then resumes from the last checkpoint, which is complete"
    if number in (errno.ENOSPC, errno.EDQUOT) or (number is None and free_bytes < 1 << 20):
        found = f"the disk is full ({free_bytes / 2**20:,.1f} MiB are free)"
        return MachineError(str(file), found, f"Make room there; {resume}")
    found = f"it cannot be written ({reason or str(error).splitlines()[0]})"
    return MachineError(str(file), found, f"Check the disk and the permissions of {folder}; {resume}")


def check_writable(folder: Path) -> None:
    """Create a folder and check that it is writable; otherwise TensorBoard's writer would fail later, in its thread.

    Raises:
        MachineError: the folder cannot be created, or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_disk_error(error, folder / "checkpoints") from error
    if not os.access(folder, os.W_OK):
        raise explain_disk_error(PermissionError(errno.EACCES, "no permission to write"), folder / "checkpoints")


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
