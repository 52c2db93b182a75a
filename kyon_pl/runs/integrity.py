"""Whether a checkpoint is complete and unaltered: the marker file beside it, and the checksums in it."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from kyon_pl.errors import CheckpointError, MissingFileError, TrainingError
from kyon_pl.files import entry, read_json_object
from kyon_pl.logs import from_here

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # folder of a run
MARKER = "COMPLETE"
EXPORT_RECORD = "kyon_pl.json"  # of an export: where it comes from, and the SHA-256 of each file
ADAPTER = "adapter_model.safetensors"
CHECKSUMS = "contents"  # key in a checkpoint
FORMAT_VERSION = 1  # of run.json, checkpoint, marker and record of an export; those without one are of version 1
MOST_TIMES = 4  # the weights, AdamW's two moments, and an average of the weights
SPARE_BYTES = 1 << 20
RESUMABLE_STATE = ("state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers")


def check_format_version(record: Mapping[str, Any], file: Path) -> None:
    """Check that a file is not of a newer format, whose other keys may mean something else.

    Args:
        record: what the file holds.
        file: named in the error.

    Raises:
        CheckpointError: `format_version` is higher than `FORMAT_VERSION`, or no whole number.
    """
    version = entry({"format_version": FORMAT_VERSION, **record}, "format_version", int, file)
    if version > FORMAT_VERSION:
        found = f"format version {version}, which a newer kyon_pl wrote; this one reads up to {FORMAT_VERSION}"
        raise CheckpointError(str(file), found, "Upgrade: pip install --upgrade kyon-pl")


def read_marker(folder: Path) -> dict[str, Any]:
    """Read the marker in an adapter's folder: `step`, `resumable`, `checkpoint` and `adapter`.

    Raises:
        MissingFileError: there is no marker.
        CheckpointError: it cannot be read, a key is missing or of another type, or a newer kyon_pl wrote it.
    """
    file = folder / MARKER
    recorded = read_json_object(file)
    check_format_version(recorded, file)
    kinds: dict[str, type] = {"step": int, "resumable": bool, "checkpoint": dict, "adapter": dict}
    return {key: entry(recorded, key, kind, file) for key, kind in kinds.items()}


def fault_of_adapter(folder: Path) -> str | None:
    """The reason why the adapter in the folder `NAME` is not what was saved; None if it is."""
    try:
        recorded = read_marker(folder)
    except MissingFileError:
        return f"{folder / MARKER} is missing: saving was interrupted"
    except CheckpointError as error:
        return f"{folder / MARKER}: {error.found}"
    return _compare_file(folder / ADAPTER, recorded["adapter"])


def fault_of_checkpoint(file: Path) -> str | None:
    """The reason why `NAME.ckpt` or the adapter in the folder `NAME` is not what was saved; None if both are."""
    folder = file.with_suffix("")
    return fault_of_adapter(folder) or _compare_file(file, read_marker(folder)["checkpoint"])


def newest_checkpoint(folder: Path, *, resumable: bool) -> Path | None:
    """The complete checkpoint with the highest optimizer step; incomplete ones are skipped with a warning.

    Args:
        folder: folder with the checkpoints.
        resumable: consider only checkpoints that training can be resumed from.
    """
    complete = []
    for file in sorted(folder.glob("*.ckpt")):
        if fault := fault_of_checkpoint(file):
            log.warning("checkpoint %s is skipped: %s", from_here(file), fault)
        elif (marker := read_marker(file.with_suffix("")))["resumable"] or not resumable:
            complete.append((marker["step"], file))
    return max(complete)[1] if complete else None


def size_and_sha256(file: Path) -> dict[str, Any]:
    """`bytes` and `sha256` of a file, as the marker records them."""
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def checksums(checkpoint: Mapping[str, Any]) -> dict[str, int]:
    """The CRC-32 of every value in a checkpoint, by its dotted name."""
    state = {key: value for key, value in checkpoint.items() if key != CHECKSUMS}
    return {name.removeprefix("."): _crc32(value) for name, value in flatten(state, "")}


def flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings and sequences with their dotted names; empty containers are leaves."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple) and value:
        for index, inner in enumerate(value):
            yield from flatten(inner, f"{name}.{index}")
    else:
        yield name, value


def check_checksums(checkpoint: Mapping[str, Any]) -> None:
    """Compare a checkpoint with its checksums.

    Raises:
        CheckpointError: it names the state that is missing, unexpected or altered.
    """
    saved, now = checkpoint[CHECKSUMS], checksums(checkpoint)
    for found, names in {
        "it is missing in the checkpoint": saved.keys() - now.keys(),
        "it was not in the checkpoint when that was saved": now.keys() - saved.keys(),
        "it is not what was saved": {name for name in saved.keys() & now.keys() if saved[name] != now[name]},
    }.items():
        if names:
            raise _error(min(names), found + (f", as are {len(names) - 1} more values" if len(names) > 1 else ""))


def check_resumable_state(checkpoint: Mapping[str, Any]) -> None:
    """Check that a checkpoint holds all state that training needs, and that all of it is of one optimizer step.

    Raises:
        CheckpointError: it names the state.
    """
    for name in RESUMABLE_STATE:
        if name not in checkpoint:
            fix = "Use a checkpoint that was saved without save_weights_only, or start a new run from its adapter"
            raise CheckpointError(f"checkpoint state {name}", "it is missing, and resuming needs it", fix)
    step = checkpoint["global_step"]
    for key in ("lr_schedulers", "loops"):
        for name, value in flatten(checkpoint[key], key):
            if name.endswith((".last_epoch", ".optimizer_step")) and value != step:
                raise _error(name, f"it is at step {value}, but global_step at {step}")


def check_size(checkpoint: Mapping[str, Any], trained_bytes: int) -> None:
    """Check that a checkpoint is no larger than weights and optimizer need, before it is written.

    Args:
        checkpoint: all of it.
        trained_bytes: size of the trained weights.

    Raises:
        TrainingError: its tensors are larger than `MOST_TIMES` the trained weights and `SPARE_BYTES`; it names the
            largest part.
    """
    sizes = {key: sum(_bytes(value) for _, value in flatten(part, key)) for key, part in checkpoint.items()}
    if sum(sizes.values()) > MOST_TIMES * trained_bytes + SPARE_BYTES:
        largest = max(sizes, key=lambda key: sizes[key])
        found = f"{sizes[largest]:,} bytes, and the trained weights have {trained_bytes:,}: a copy of the frozen base?"
        fix = "Remove the callback that adds it, or let it save trained weights only"
        raise TrainingError(f"checkpoint state {largest}", found, fix)


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def check_trained_weights(state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes of a checkpoint's trained weights with those of the model.

    Args:
        state: the weights in the checkpoint.
        shapes: shapes of the model's trained weights.

    Raises:
        CheckpointError: a weight is missing, unexpected or of another shape.
    """
    saved = {name: tuple(value.shape) for name, value in state.items()}
    if saved == shapes:
        return
    name = min(set(saved.items()) ^ set(shapes.items()))[0]
    raise CheckpointError(
        where=f"checkpoint weight {name}",
        found=f"shape {saved.get(name, 'unknown')} in the checkpoint, {shapes.get(name, 'unknown')} in this model",
        fix="Use the model.lora settings and the base that the checkpoint was made with, from its config.yaml",
    )


def _compare_file(file: Path, recorded: dict[str, Any]) -> str | None:
    try:
        if not file.is_file():
            return f"{file} is missing"
        found = size_and_sha256(file)
    except OSError as error:
        return f"{file} cannot be read ({error.strerror})"
    return None if found == recorded else f"{file} is not what was written ({found['bytes']:,} bytes)"


def _error(name: str, found: str) -> CheckpointError:
    fix = "Use another checkpoint of the run; this one was altered"
    return CheckpointError(f"checkpoint state {name}", found, fix)


def _crc32(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        header = zlib.crc32(f"{plain.dtype} {tuple(plain.shape)}".encode())
        data = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        return zlib.crc32(data, header)
    return zlib.crc32(repr(value).encode())
