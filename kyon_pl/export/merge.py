# mypy: allow-untyped-calls
"""`kyon-pl merge`: merges an adapter into its base, one layer at a time."""

from __future__ import annotations

import logging
import shlex
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
from kyon_pl.demo import fetch_base, name_to_record
from kyon_pl.errors import CheckpointError, MachineError, MissingFileError
from kyon_pl.export.formats import FORMATS, TOLERANCES, Format, FormatName, chatglm_angles, save_configs, verify
from kyon_pl.export.layerwise import (
    CHATGLM_PARTS,
    ShardWriter,
    base_parameter,
    empty_model,
    loaded_part,
    map_weights,
    names_in,
    probe_ids,
    relative_difference,
    run_part,
)
from kyon_pl.export.staging import new_folder, staging_folder, write_record
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
    """Merge an adapter into its base. The merged model loads without PEFT.

    Weights are merged in float32, one layer at a time, and rounded once. The folder gets its final name after it has
    been read again and verified against base and adapter.

    Args:
        output: the folder to write; it must not exist, or must be empty.
        adapter: a PEFT folder, a run folder, a folder of runs, a checkpoint, or a Hub id; by default the newest run.
        which: of a run, the best checkpoint by validation loss, or the last.
        format: `chatglm` keeps the published names and files, for kyon_pl, the published code and tools that support
            it. `glm` is for transformers' GlmForCausalLM, with a tokenizer.json, and does not need kyon_pl.
        dtype: of the merged weights.
        base: a folder or Hub id with weights that are not quantized; by default the adapter's base.
        revision: branch, tag or commit of the base on the Hub.

    Raises:
        SettingError: the output exists, or the base has no weights.
        MissingFileError: adapter or base do not exist, or one of their files is missing.
        CheckpointError: adapter and base do not fit, or the merged model differs from them.
        MachineError: the disk is full.
    """
    output = new_folder(output)
    adapter_folder = find_adapter(adapter, which)
    base_name = base_with_weights(base, adapter_folder)
    base_folder = _base_folder(base_name, revision)
    config = read_config(base_folder)
    check_weights(base_folder, config)
    live = live_model(config, adapter_folder, base_name)
    form, torch_dtype = FORMATS[format], getattr(torch, dtype)
    with staging_folder(output) as folder:
        _check_free_space(folder, config.parameter_count * torch_dtype.itemsize)
        live_outputs = write_weights(live, map_weights(base_folder), folder, form, torch_dtype)
        save_configs(base_folder, config, folder, form, torch_dtype)
        form.save_tokenizer(base_folder, folder)
        copy_licence(base_folder, folder)
        rounding = verify(folder, form, torch_dtype, live_outputs)
        record = {"base": name_to_record(base_name), "adapter": name_to_record(adapter or str(adapter_folder))}
        write_record(folder, record | {"format": format, "dtype": dtype})
    shown = from_here(output)
    log.info("wrote %s: %s and adapter as %s in %s; logits differ by %.0e", shown, base_name, format, dtype, rounding)
    folder_word = shlex.quote(str(shown))
    served = f", or transformers serve {folder_word}" if format == "glm" else ""
    log.info("next: kyon-pl chat --adapter %s%s", folder_word, served)


def live_model(config: ChatGLM2Config, adapter: Path, base_name: str) -> ChatGLM2ForCausalLM:
    """Build the empty base with the adapter attached, in evaluation mode.

    Raises:
        CheckpointError: from `load_adapter`; or every B is zero, as before training.
    """
    wrapped = load_adapter(empty_model(ChatGLM2ForCausalLM, config), adapter, base_name)
    wrapped.requires_grad_(False).eval()
    if not any(parameter.any() for name, parameter in wrapped.named_parameters() if ".lora_B." in name):
        found = "every lora_B is zero: the adapter changes nothing"
        raise CheckpointError(f"adapter {adapter}", found, "Use a trained adapter")
    return cast(ChatGLM2ForCausalLM, wrapped.get_base_model())


def write_weights(
    live: ChatGLM2ForCausalLM, weights: Mapping[str, Tensor], folder: Path, form: Format, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Merge and write one part after the other.

    Args:
        live: from `live_model`; its LoRA layers are marked as merged afterwards.
        weights: of the base, by name.
        folder: to write to.
        form: format to convert to.
        dtype: of the written weights.

    Returns:
        The output of each part on the probe rows before it was merged, in order.

    Raises:
        CheckpointError: PEFT cannot merge this adapter, or the output of a merged part differs in float32.
    """
    writer, outputs, config = ShardWriter(folder), {}, cast(ChatGLM2Config, live.config)
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
    except ValueError as error:  # not finite
        raise CheckpointError(f"adapter at {part}", str(error), "Use another adapter") from error


def copy_licence(base: Path, folder: Path) -> None:
    """Copy the base's licence files."""
    for name in LICENCE_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def _base_folder(base: str, revision: str | None) -> Path:
    folder = fetch_base(base, revision, patterns=[*MODEL_FILES, *TOKENIZER_FILES, *LICENCE_FILES])
    for name in ("config.json", "tokenizer.model"):
        if not (folder / name).is_file():
            raise MissingFileError(str(folder), f"no {name}", "Give the complete folder of a ChatGLM2 base.")
    return folder


def _check_free_space(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        found = f"{free_bytes / 1e9:.1f} GB free, and the model takes {needed_bytes / 1e9:.1f} GB"
        raise MachineError(str(folder.parent), found, "Free space, or give an --output on another disk")
