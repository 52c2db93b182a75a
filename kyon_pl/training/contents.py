"""What is in a checkpoint, leaf by leaf, so that what is missing, alien or altered can be named when it is loaded."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from kyon_pl.errors import CheckpointError

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
