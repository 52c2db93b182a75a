"""Weights to safetensors, shard by shard, so that no more than one shard is in memory."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

BYTES_PER_SHARD = 2_000_000_000


class ShardWriter:
    """Writes `model.safetensors`, or several with an index, as transformers names them.

    Args:
        folder: where to.
        bytes_per_shard: a shard is closed before it grows beyond this; a larger tensor has one of its own.
    """

    def __init__(self, folder: Path, bytes_per_shard: int = BYTES_PER_SHARD) -> None:
        self.folder = folder
        self.bytes_per_shard = bytes_per_shard
        self.held: dict[str, Tensor] = {}
        self.held_bytes = 0
        self.total_bytes = 0
        self.shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor, which must be nobody else's memory, and write the shard if it is full."""
        if self.held and self.held_bytes + tensor.nbytes > self.bytes_per_shard:
            self._write_shard()
        self.held[name] = tensor
        self.held_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left; now that their number is known, give the shards their names, and write the index."""
        self._write_shard()
        count = len(self.shards)
        if count == 1:
            self._shard(1).rename(self.folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self.shards, start=1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors"
            self._shard(number).rename(self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        text = json.dumps(index, indent=2) + "\n"
        (self.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _shard(self, number: int) -> Path:
        return self.folder / f"model-{number:05d}.safetensors"

    def _write_shard(self) -> None:
        self.shards.append(list(self.held))
        file = self._shard(len(self.shards))
        file.touch()
        mode = file.stat().st_mode
        save_file(self.held, file, metadata={"format": "pt"})
        file.chmod(mode)  # safetensors lets nobody but the owner read it
        self.held = {}
        self.held_bytes = 0
