# mypy: allow-untyped-calls
"""A merged model read again and compared with the live one, before anybody can use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedModel

from kyon_pl.errors import CheckpointError
from kyon_pl.lora.formats import Format
from kyon_pl.lora.layerwise import apply, difference, empty_model, loaded, mapped_weights, probe_ids

# What rounding the weights may change in what any part of the model gives, relative to it. On a random 6B it is 2e-3 in
# float16 and 3e-2 in bfloat16 after the last layer.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def verify(folder: Path, form: Format, dtype: torch.dtype, live_outputs: Mapping[str, Tensor]) -> float:
    """Compare what was written with what it was written from: names, shapes, dtypes, and the outputs of every part.

    The merged model computes in float32 too, through its users' own classes, part by part, on the same rows.

    Args:
        folder: of the merged model.
        form: what it is written as.
        dtype: of all its weights.
        live_outputs: what each part of the live model gave, in their order.

    Returns:
        The relative difference of the logits.

    Raises:
        CheckpointError: it names the first thing that differs.
    """
    weights = mapped_weights(folder)
    model = empty_model(form.model_class, form.config_class.from_pretrained(folder))
    _check_shapes(folder, model, weights, dtype)
    hidden = probe_ids(model.config.vocab_size)
    angles = form.angles(model.config, torch.arange(hidden.shape[1])[None])
    parts = list(zip(form.parts.names(model.config), live_outputs.values(), strict=True))
    for part, wanted in tqdm(parts, "verifying", unit="part", disable=None):
        with loaded(model, part, weights) as module:
            hidden = apply(module, hidden, angles)
        if not difference(hidden, wanted) <= TOLERANCES[dtype]:  # NaN is not
            found = f"merged and live differ by {difference(hidden, wanted):.1e}, more than {TOLERANCES[dtype]:.0e}"
            fix = "Use --dtype float32, which rounds nothing; if it is refused too, the adapter is not one to merge"
            raise CheckpointError(f"{folder.name}: {part}", found, fix)
    return difference(hidden, wanted)


def _check_shapes(folder: Path, model: PreTrainedModel, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    wanted = {name: (tuple(tensor.shape), dtype) for name, tensor in model.named_parameters()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    if different := {name for name, _ in wanted.items() ^ found.items()}:
        name = min(different)
        said = f"{found.get(name, 'nothing')} on the disk, {wanted.get(name, 'nothing')} in the model"
        raise CheckpointError(f"{folder.name}: {name}", said, "Merge again; if it is no better, check the disk")
