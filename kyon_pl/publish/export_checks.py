"""What is about to leave this machine, read again: names, shapes, dtypes, weights that say something, and checksums."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from peft import get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM
from kyon_pl.chatglm2.configuration import read_config
from kyon_pl.chatglm2.files import UNREADABLE, read_json_object, weight_files, why_unreadable
from kyon_pl.demo import fetch_base_config
from kyon_pl.errors import CheckpointError, KyonError
from kyon_pl.lora.saved import check_fit, read_adapter, weights_file
from kyon_pl.runs.adapters import SETTINGS, adapter_base
from kyon_pl.runs.integrity import MARKER, fault_of_adapter, size_and_sha256

log = logging.getLogger(__name__)

RECORD = "kyon_pl.json"  # kyon-pl merge writes it: the SHA-256 of every file
_AGAIN = "Export it again; do not publish this one"


def check_export(folder: Path) -> None:
    """Read a folder as whoever downloads it will, and refuse what would not serve them.

    Args:
        folder: a PEFT folder, or that of a merged model.

    Raises:
        MissingFileError: a file is not there.
        CheckpointError: a file that is not what was saved, weights that do not fit settings or base, or an adapter
            that has learnt nothing; the tensor or file is named.
    """
    if (folder / SETTINGS).is_file():
        check_adapter(folder)
    else:
        check_merged(folder)


def check_adapter(folder: Path) -> None:
    """Checksum, settings, names, shapes, dtypes and a `lora_B` that is not zero.

    Raises:
        MissingFileError: there are no weights.
        CheckpointError: as `check_export`.
    """
    if (folder / MARKER).is_file() and (fault := fault_of_adapter(folder)):
        raise CheckpointError(str(folder), fault, _AGAIN)
    config, state = read_adapter(folder)
    file = weights_file(folder)
    dtypes = {tensor.dtype for tensor in state.values()}
    if len(dtypes) > 1:
        named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise CheckpointError(str(file), f"its tensors are of several dtypes: {named}", _AGAIN)
    for name, tensor in state.items():
        partner = name.replace(".lora_A.", ".lora_B.") if ".lora_A." in name else name.replace(".lora_B.", ".lora_A.")
        if partner not in state:
            raise CheckpointError(f"{file}: {partner}", "it is missing", _AGAIN)
        if ".lora_B." in name and not tensor.any():
            raise CheckpointError(f"{file}: {name}", "it is all zero: this layer has learnt nothing", _AGAIN)
    if shape := _shape_of_base(folder, state):
        with torch.device("meta"):
            model = ChatGLM2ForCausalLM(shape)
        config.base_model_name_or_path = None  # PEFT would warn that it differs from the model's own name
        check_fit(folder, get_peft_model(model, config), state)


def check_merged(folder: Path) -> None:
    """Checksums where there is a record, and names and shapes by the folder's own `config.json`.

    Raises:
        MissingFileError: there are no weights, or a shard is missing.
        CheckpointError: as `check_export`.
    """
    if (folder / RECORD).is_file():
        for name, sha256 in read_json_object(folder / RECORD).get("files", {}).items():
            if not (folder / name).is_file():
                raise CheckpointError(str(folder / name), "it is missing", _AGAIN)
            if size_and_sha256(folder / name)["sha256"] != sha256:
                raise CheckpointError(str(folder / name), "it is not what was written", _AGAIN)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            AutoConfig.from_pretrained(folder, local_files_only=True)
        )
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: shape for file in weight_files(folder) for name, shape in _shapes_in(file).items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            said = f"{found.get(name, 'not there')} instead of {wanted.get(name, 'nothing')}"
            raise CheckpointError(f"{folder}: {name}", said, _AGAIN)


def _shape_of_base(folder: Path, state: dict[str, torch.Tensor]) -> ChatGLM2Config | None:
    """The base's shape, if its `config.json` can be had, and the adapter is one in ChatGLM2's own names."""
    if not any(".transformer.encoder." in name for name in state):
        return None
    try:
        return read_config(fetch_base_config(adapter_base(folder), None))
    except KyonError as error:
        log.warning("the adapter's layers were not compared with its base: %s", error)
        return None


def _shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except UNREADABLE as error:
        raise CheckpointError(str(file), f"it cannot be read ({why_unreadable(error)})", _AGAIN) from error
