# mypy: allow-untyped-calls
"""Merging an adapter into its base, one part at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from kyon_pl.chatglm2.configuration import ChatGLM2Config
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.errors import CheckpointError
from kyon_pl.export.formats import TOLERANCES, Format, chatglm_angles
from kyon_pl.export.layerwise import (
    CHATGLM_PARTS,
    ShardWriter,
    base_parameter,
    empty_model,
    loaded_part,
    names_in,
    probe_ids,
    relative_difference,
    run_part,
)
from kyon_pl.lora.adapter import load_adapter


def live_model(config: ChatGLM2Config, adapter: Path | None, base_name: str) -> ChatGLM2ForCausalLM:
    """Build the empty base, with the adapter attached if there is one, in evaluation mode.

    Raises:
        CheckpointError: from `load_adapter`; or every B is zero, as before training.
    """
    base = cast(ChatGLM2ForCausalLM, empty_model(ChatGLM2ForCausalLM, config))
    if adapter is None:
        return base
    wrapped = load_adapter(base, adapter, base_name)
    wrapped.requires_grad_(False).eval()
    if not any(parameter.any() for name, parameter in wrapped.named_parameters() if ".lora_B." in name):
        found = "every lora_B is zero: the adapter changes nothing"
        raise CheckpointError(f"adapter {adapter}", found, "Use a trained adapter")
    return cast(ChatGLM2ForCausalLM, wrapped.get_base_model())


def merge_parts(
    live: ChatGLM2ForCausalLM, weights: Mapping[str, Tensor], add: Callable[[str, Tensor], object]
) -> dict[str, Tensor]:
    """Merge one part after the other.

    Args:
        live: from `live_model`; its LoRA layers are marked as merged afterwards.
        weights: of the base, by name.
        add: called with each merged weight, float32, under its name; it must not keep the tensor.

    Returns:
        The output of each part on the probe rows before it was merged, in order.

    Raises:
        CheckpointError: PEFT cannot merge this adapter, or the output of a merged part differs in float32.
    """
    outputs, config = {}, cast(ChatGLM2Config, live.config)
    hidden = probe_ids(config.padded_vocab_size)
    angles = chatglm_angles(config, torch.arange(hidden.shape[1])[None])
    for part in tqdm(CHATGLM_PARTS.names(config), "merging", unit="part", disable=None):
        with loaded_part(live, part, weights) as module:
            outputs[part] = run_part(module, hidden, angles)
            _merge_part(module, part)
            difference = relative_difference(run_part(module, hidden, angles), outputs[part])
            if not difference <= TOLERANCES[torch.float32]:  # also if it is NaN
                found = f"merged and live differ by {difference:.1e} in float32"
                raise CheckpointError(f"adapter at {part}", found, "Use another adapter; this one cannot be merged")
            for name in names_in(part, weights):
                add(name, base_parameter(live, name))
        hidden = outputs[part]
    return outputs


def write_weights(
    live: ChatGLM2ForCausalLM, weights: Mapping[str, Tensor], folder: Path, form: Format, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Merge all parts and write them as safetensors.

    Args:
        live: as for `merge_parts`.
        weights: of the base, by name.
        folder: to write to.
        form: format to convert to.
        dtype: of the written weights.

    Returns:
        As `merge_parts`.

    Raises:
        CheckpointError: as `merge_parts`.
    """
    writer, config = ShardWriter(folder), cast(ChatGLM2Config, live.config)

    def add(name: str, tensor: Tensor) -> None:
        for written, converted in form.tensors(name, tensor, config).items():
            writer.add(written, converted.to(dtype, copy=True).contiguous())

    outputs = merge_parts(live, weights, add)
    writer.close()
    return outputs


def _merge_part(module: nn.Module, part: str) -> None:
    try:
        for layer in module.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge(safe_merge=True)
    except ValueError as error:  # not finite
        raise CheckpointError(f"adapter at {part}", str(error), "Use another adapter") from error
