"""Whether a checkpoint is whole: the completion marker beside it, and the checksums of its contents."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from kyon_pl.errors import CheckpointError

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


CONTENTS = "contents"
NEEDED = ("state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers", CONTENTS)


def contents_of(checkpoint: Mapping[str, Any]) -> dict[str, int]:
    """The CRC-32 of every value of a checkpoint, by its dotted name."""
    listed = {key: value for key, value in checkpoint.items() if key != CONTENTS}
    return {name.removeprefix("."): _crc32(value) for name, value in leaves(listed, "")}


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The values in a nested one that are not nested themselves, with their dotted names; an empty one is a value."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple) and value:
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{name}.{number}")
    else:
        yield name, value


def check_contents(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that is not what was saved; one without a list of its contents is taken as it is.

    Raises:
        CheckpointError: it names the state that is missing, unexpected or altered.
    """
    saved, now = checkpoint.get(CONTENTS), contents_of(checkpoint)
    if saved is None:
        return
    for found, names in {
        "it is missing in the checkpoint": saved.keys() - now.keys(),
        "it was not in the checkpoint when that was saved": now.keys() - saved.keys(),
        "it is not what was saved": {name for name in saved.keys() & now.keys() if saved[name] != now[name]},
    }.items():
        if names:
            raise _error(min(names), found + (f", as are {len(names) - 1} more values" if len(names) > 1 else ""))


def check_state_to_train_on(checkpoint: Mapping[str, Any]) -> None:
    """Refuse to train on from a checkpoint that lacks state, or whose parts are not of one step.

    Raises:
        CheckpointError: it names the state.
    """
    for name in NEEDED:
        if name not in checkpoint:
            raise _error(name, "it is missing in the checkpoint")
    _check_positions(checkpoint)


def check_trained_weights(state: Mapping[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Compare a checkpoint's trained weights with the model's, name by name.

    Args:
        state: the checkpoint's.
        wanted: the shapes of the model's.

    Raises:
        CheckpointError: a weight that one of them has and the other has not, or that has another shape.
    """
    saved = {name: tuple(value.shape) for name, value in state.items()}
    if saved == wanted:
        return
    name = min(set(saved.items()) ^ set(wanted.items()))[0]
    raise CheckpointError(
        where=f"checkpoint weight {name}",
        found=f"shape {saved.get(name, 'unknown')} in the checkpoint, {wanted.get(name, 'unknown')} in this model",
        fix="Use the model.lora settings and the base that the checkpoint was made with, from its config.yaml",
    )


def _check_positions(checkpoint: Mapping[str, Any]) -> None:
    """Everything that counts optimizer steps must have counted the same."""
    step = checkpoint["global_step"]
    for name, value in (*leaves(checkpoint["lr_schedulers"], "lr_schedulers"), *leaves(checkpoint["loops"], "loops")):
        if name.endswith((".last_epoch", ".optimizer_step")) and value != step:
            raise _error(name, f"it stands at {value}, and global_step at {step}")


def _error(name: str, found: str) -> CheckpointError:
    return CheckpointError(f"checkpoint state {name}", found, "Use another checkpoint of the run; this one was changed")


def _crc32(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        described = zlib.crc32(f"{plain.dtype} {tuple(plain.shape)}".encode())
        content = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        return zlib.crc32(content, described)
    return zlib.crc32(repr(value).encode())
