# mypy: allow-untyped-calls
"""`kyon-pl merge`: an adapter added into its base, one layer at a time."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from kyon_pl.chatglm2.checkpoint import check_weights
from kyon_pl.chatglm2.configuration import ChatGLM2Config, read_config
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.demo import fetch_base
from kyon_pl.errors import CheckpointError, MachineError, MissingFileError
from kyon_pl.export.formats import FORMATS, TOLERANCES, Format, FormatName, chatglm_angles, save_configs, verify
from kyon_pl.export.layerwise import (
    CHATGLM_PARTS,
    ShardWriter,
    apply,
    base_parameter,
    difference,
    empty_model,
    loaded,
    mapped_weights,
    names_in,
    probe_ids,
)
from kyon_pl.export.side_folder import refuse_existing, side_folder, write_record
from kyon_pl.hub.download import LICENCE_FILES, MODEL_FILES, TOKENIZER_FILES
from kyon_pl.logs import from_here
from kyon_pl.lora.adapter import load_adapter
from kyon_pl.runs.adapters import base_with_weights, find_adapter

log = logging.getLogger(__name__)


def merge(
    output: Path,
    adapter: str | None = None,
    which: Literal["best", "last"] = "best",
    format: FormatName = "chatglm",
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    base: str | None = None,
    revision: str | None = None,
) -> None:
    """Add an adapter into its base: a model of its own, which loads without PEFT.

    The sum is made in float32, a layer at a time, and rounded once. The folder is read again and compared with base and
    adapter before it gets its name.

    Args:
        output: the folder to write; it must not exist, or be empty.
        adapter: a PEFT folder, a run folder, a folder of runs, a checkpoint, or a Hub id; unset, the newest run here.
        which: of a run, the best checkpoint by validation loss, or the last.
        format: `chatglm` keeps the published names and files, for kyon_pl, the published code and what knows it.
            `glm` is the same model for transformers' own GlmForCausalLM, with a tokenizer.json: no kyon_pl is needed.
        dtype: of the weights that are written.
        base: a folder or Hub id with weights that are not quantized; unset, the one that the adapter names.
        revision: branch, tag or commit of the base on the Hub.

    Raises:
        SettingError: the output exists, or the base cannot be one.
        MissingFileError: no such adapter or base, or a file of them is missing.
        CheckpointError: adapter and base do not fit, or what was written is not what they give.
        MachineError: the disk is full.
    """
    refuse_existing(output)
    adapter_folder = find_adapter(adapter, which)
    base_name = base_with_weights(base, adapter_folder)
    base_folder = _base_folder(base_name, revision)
    config = read_config(base_folder)
    check_weights(base_folder, config)
    live = live_model(config, adapter_folder, base_name)
    form, torch_dtype = FORMATS[format], getattr(torch, dtype)
    with side_folder(output) as side:
        _check_room(side, config.parameter_count * torch_dtype.itemsize)
        weights = mapped_weights(base_folder)
        live_outputs = write_weights(live, weights, side, form, torch_dtype)
        save_configs(base_folder, config, side, form, torch_dtype)
        form.save_tokenizer(base_folder, side)
        copy_licence(base_folder, side)
        rounding = verify(side, form, torch_dtype, live_outputs)
        record = {"base": base_name, "adapter": adapter or str(from_here(adapter_folder))}
        write_record(side, record | {"format": format, "dtype": dtype})
    shown = from_here(output)
    log.info("wrote %s: %s and adapter as %s in %s; logits differ by %.0e", shown, base_name, format, dtype, rounding)


def live_model(config: ChatGLM2Config, adapter: Path, base_name: str) -> ChatGLM2ForCausalLM:
    """The empty base with the adapter attached, for evaluation.

    Raises:
        CheckpointError: the adapter was made for another model, cannot be read, does not fit together, or is as it was
            before training: every B is zero, and it changes nothing.
    """
    wrapped = load_adapter(empty_model(ChatGLM2ForCausalLM, config), adapter, base_name)
    wrapped.requires_grad_(False).eval()
    if not any(parameter.any() for name, parameter in wrapped.named_parameters() if ".lora_B." in name):
        found = "every lora_B is zero: the adapter changes nothing"
        raise CheckpointError(f"adapter {adapter}", found, "Use one that was trained")
    return cast(ChatGLM2ForCausalLM, wrapped.get_base_model())


def write_weights(
    live: ChatGLM2ForCausalLM, weights: Mapping[str, Tensor], folder: Path, form: Format, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Merge and write one part after the other.

    Args:
        live: the empty base with the adapter attached; its adapter counts as merged afterwards.
        weights: of the base, under its names.
        folder: where to.
        form: under which names.
        dtype: in which precision.

    Returns:
        What each part gave on the probe rows before it was merged, in their order.

    Raises:
        CheckpointError: PEFT cannot merge this adapter, or the merged part gives something else in float32.
    """
    writer, outputs, config = ShardWriter(folder), {}, cast(ChatGLM2Config, live.config)
    hidden = probe_ids(config.padded_vocab_size)
    angles = chatglm_angles(config, torch.arange(hidden.shape[1])[None])
    for part in tqdm(CHATGLM_PARTS.names(config), "merging", unit="part", disable=None):
        with loaded(live, part, weights) as module:
            outputs[part] = apply(module, hidden, angles)
            _merge_part(module, part)
            changed = difference(apply(module, hidden, angles), outputs[part])
            if not changed <= TOLERANCES[torch.float32]:  # NaN is not
                found = f"merged and live differ by {changed:.1e} in float32"
                raise CheckpointError(f"adapter at {part}", found, "Use another adapter; this one is not one to merge")
            for name in names_in(part, weights):
                for written, tensor in form.tensors(name, base_parameter(live, name), config).items():
                    writer.add(written, tensor.to(dtype, copy=True).contiguous())
        hidden = outputs[part]
    writer.close()
    return outputs


def _merge_part(module: nn.Module, part: str) -> None:
    try:
        for layer in module.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge(safe_merge=True)
    except ValueError as error:  # numbers that are not finite
        raise CheckpointError(f"adapter at {part}", str(error), "Use another adapter") from error


def copy_licence(base: Path, folder: Path) -> None:
    """The base's terms go where its weights go."""
    for name in LICENCE_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def _base_folder(base: str, revision: str | None) -> Path:
    folder = fetch_base(base, revision, patterns=[*MODEL_FILES, *TOKENIZER_FILES, *LICENCE_FILES])
    for name in ("config.json", "tokenizer.model"):
        if not (folder / name).is_file():
            raise MissingFileError(str(folder), f"no {name}", "Give the complete folder of a ChatGLM2 base.")
    return folder


def _check_room(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        found = f"{free_bytes / 1e9:.1f} GB free, and the model takes {needed_bytes / 1e9:.1f} GB"
        raise MachineError(str(folder.parent), found, "Make room, or give an --output on another disk")
