"""What a checkpoint's marker says: `COMPLETE` in the folder `NAME` beside `NAME.ckpt`, written last.

It records the optimizer step, whether a run can go on from there, and size and SHA-256 of the checkpoint and of the
adapter. `training.checkpoint_io` writes it; here it is read, without Lightning.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MARKER = "COMPLETE"
ADAPTER = "adapter_model.safetensors"


def read_marker(folder: Path) -> dict[str, Any]:
    """What the marker in an adapter's folder records: step, resumable, checkpoint, adapter.

    Raises:
        FileNotFoundError: there is no marker.
        ValueError: it is not JSON.
        KeyError: something is missing in it.
        TypeError: it is JSON of another kind.
    """
    recorded = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    parts = {key: dict(recorded[key]) for key in ("checkpoint", "adapter")}
    return {"step": int(recorded["step"]), "resumable": bool(recorded["resumable"])} | parts


def fault_of_adapter(folder: Path) -> str | None:
    """Why the adapter in the folder `NAME` is not what was saved there, in words; None if it is."""
    try:
        recorded = read_marker(folder)
    except FileNotFoundError:
        return f"{folder / MARKER} is missing: it was not written to its end"
    except (ValueError, KeyError, TypeError):
        return f"{folder / MARKER} cannot be read"
    return _difference(folder / ADAPTER, recorded["adapter"])


def fault_of_checkpoint(file: Path) -> str | None:
    """Why `NAME.ckpt` and the adapter beside it are not both what was saved, in words; None if they are."""
    folder = file.with_suffix("")
    return fault_of_adapter(folder) or _difference(file, read_marker(folder)["checkpoint"])


def size_and_sha256(file: Path) -> dict[str, Any]:
    """`bytes` and `sha256` of a file, as the marker records them."""
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _difference(file: Path, recorded: dict[str, Any]) -> str | None:
    if not file.is_file():
        return f"{file} is missing"
    same = size_and_sha256(file) == recorded
    return None if same else f"{file} is not what was written ({file.stat().st_size:,} bytes)"
