"""How a checkpoint reaches the disk: whole or not at all, with the adapter as a PEFT folder beside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from kyon_pl.errors import CheckpointError


class AdapterCheckpointIO(TorchCheckpointIO):
    """Writes `NAME.ckpt` and, beside it, the folder `NAME` with the PEFT adapter, the tokenizer's files and
    `config.yaml`.

    Lightning's own writing goes through a temporary folder that may lie on another file system, and a kill during
    that copy leaves an empty file; here the file is written beside its place, synced and renamed.

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
        """Write the checkpoint file and the adapter folder; Lightning calls this on one rank.

        Args:
            checkpoint: model and trainer state.
            path: of the file.
            storage_options: none is known to this writer.

        Raises:
            TypeError: `storage_options` were given.
        """
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__} takes no storage_options")
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = file.with_suffix("")
        self.write_adapter(checkpoint["state_dict"], folder)
        (folder / "config.yaml").write_text(self.config, encoding="utf-8")
        beside = file.with_name(f".{file.name}.writing")
        with beside.open("wb") as stream:
            torch.save({**checkpoint, "config": self.config}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU: tensors and plain values, never a pickled object.

        Args:
            path: of the file.
            map_location: where tensors go; the CPU if None.
            weights_only: whatever a caller says, nothing else is read.

        Raises:
            CheckpointError: the file is cut short, or holds something else than tensors and plain values.
        """
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except (RuntimeError, UnpicklingError, EOFError) as error:
            raise CheckpointError(
                where=f"checkpoint {path}",
                found=f"it cannot be read ({str(error).splitlines()[0]})",
                fix="Use an older checkpoint of the run; this one may be cut short",
            ) from error
        return checkpoint

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint file and its adapter folder."""
        file = Path(path)
        file.unlink(missing_ok=True)
        shutil.rmtree(file.with_suffix(""), ignore_errors=True)
