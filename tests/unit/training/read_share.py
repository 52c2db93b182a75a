"""One rank that shards a base, and writes what it read of the files and whether its share is the right one.

    python read_share.py RANK STORE OUTPUT FOLDER...

Reads are counted as the kernel sees them: bytes of `read`, and the pages of the files that are mapped into this
process when a weight has been taken.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from kyon_pl.chatglm2.checkpoint import base_without_weights
from kyon_pl.chatglm2.files import iterate_weights, weight_files
from kyon_pl.lora import attach_lora, reference_lora
from kyon_pl.training.sharding import shard_base, weight_owners

RANKS = 2
SETTINGS: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "sdpa"}


def read_bytes() -> int:
    """Of all `read` calls of this process so far."""
    (count,) = re.findall(r"^rchar: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    return int(count)


def mapped_bytes(folder: Path) -> dict[str, int]:
    """The pages of each file of a folder that this process has touched."""
    mapping = re.compile(rf" ({re.escape(str(folder))}/\S+)\n(?:\S+: .*\n)*?Rss: +(\d+) kB")
    found: dict[str, int] = {}
    for file, kib in mapping.findall(Path("/proc/self/smaps").read_text()):
        found[file] = found.get(file, 0) + int(kib) * 1024
    return found


def shard(folder: Path) -> dict[str, int | bool]:
    """Shard the base of a folder."""
    touched: dict[str, int] = {}
    looks = 0  # bytes that were read to count

    def weights() -> Iterator[tuple[str, Tensor]]:
        nonlocal looks
        for weight in iterate_weights(weight_files(folder)):
            yield weight
            before = read_bytes()
            for file, count in mapped_bytes(folder).items():
                touched[file] = max(count, touched.get(file, 0))
            looks += read_bytes() - before

    attach_lora(base_without_weights(folder, **SETTINGS), reference_lora(), "base")  # imports what it needs
    before = read_bytes()
    base = base_without_weights(folder, **SETTINGS)
    owners = weight_owners(base)
    torch.manual_seed(0)
    attach_lora(base, reference_lora(), "base")
    shard_base(base, owners, weights(), torch.device("cpu"))
    read = read_bytes() - before - looks
    whole = dict(iterate_weights(weight_files(folder)))
    shares = {name: getattr(module, kind) for name, (module, kind) in owners.items()}
    rank = dist.get_rank()
    right = all(
        isinstance(share, DTensor)
        and torch.equal(share.to_local(), torch.cat([whole[name].float().chunk(RANKS)[rank]]))
        for name, share in shares.items()
    )
    total = sum(tensor.nbytes for tensor in whole.values())
    return {"read": read, "mapped": sum(touched.values()), "base": total, "right": right}


if __name__ == "__main__":
    rank, store, output, *folders = sys.argv[1:]
    dist.init_process_group("gloo", store=dist.FileStore(store, RANKS), rank=int(rank), world_size=RANKS)
    Path(output).write_text(json.dumps([shard(Path(folder)) for folder in folders]))
    dist.barrier()
    dist.destroy_process_group()
