# mypy: allow-untyped-calls
"""A base on disk to a model in memory: every weight accounted for before the first one is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from kyon_pl.chatglm2.configuration import ChatGLM2Config, read_config
from kyon_pl.chatglm2.files import KNOWN_EXTRA, Shapes, read_json_object, shapes_in, weight_files, weights_in
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.errors import CheckpointError, MissingFileError

Quantize = Callable[[nn.Linear, Tensor], nn.Linear]
"""From a linear layer whose weight is not there yet, and its weight, to the layer that takes its place."""


def load_base(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attn_implementation: str,
    quantize: Quantize | None = None,
) -> ChatGLM2ForCausalLM:
    """Load a base in the published layout: `config.json`, and shards of pickle or safetensors with their index.

    The weights are mapped from disk and go to the device one by one, where they are converted; this process holds none
    of them, unless the device is the CPU and the precision another one than the files'. Pickles may hold tensors and
    nothing else (`weights_only`), and no code of the folder is run.

    Args:
        folder: what `kyon_pl.demo.fetch_base` returned.
        dtype: of all weights that are not quantized.
        device: where to.
        attn_implementation: `varlen`, `sdpa` or `eager`.
        quantize: makes the linear layers of the decoder, each as soon as its weight is on the device.

    Returns:
        The model, in evaluation mode.

    Raises:
        MissingFileError: no `config.json`, no weights, or a shard that the index names is not there.
        SettingError: a configuration that is not implemented.
        CheckpointError: a file that cannot be read, or weights that are missing, unexpected or of another shape.
    """
    if not (folder / "config.json").is_file():
        raise MissingFileError(where=str(folder), found="no config.json", fix="Give the folder of a ChatGLM2 base.")
    config = read_config(folder)
    generates = (folder / "generation_config.json").is_file()
    if generates:
        read_json_object(folder / "generation_config.json")  # transformers reads it, and has no words of its own
    check_weights(folder, config)
    model = _empty(config, dtype, attn_implementation)
    for name, tensor in weights_in(weight_files(folder)):
        _fill(model, name, tensor.to(device).to(dtype), quantize)  # converted there: a CPU would need a copy
    if generates:
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def check_weights(folder: Path, config: ChatGLM2Config) -> None:
    """Account for every weight of a folder by name, shape and kind; none is read.

    Raises:
        MissingFileError: no weights, or a shard that the index names is not there.
        CheckpointError: a file that cannot be read, or weights that are missing, unexpected or of another shape.
    """
    _refuse_differences(folder, expected=_shapes_of(config), found=shapes_in(weight_files(folder)))


def random_base(
    config: ChatGLM2Config,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attn_implementation: str,
    quantize: Quantize | None = None,
) -> ChatGLM2ForCausalLM:
    """A model of random weights, made on the device in its final precision, so that 6B in float16 needs 12.5 GB there.

    Args:
        config: the shape.
        dtype: of all weights that are not quantized.
        device: where to.
        attn_implementation: `varlen`, `sdpa` or `eager`.
        quantize: as in `load_base`.

    Returns:
        The model, in evaluation mode: normal weights of the standard deviation `config.initializer_range`, norms of
        one, biases of zero. They are the same every time on one kind of device, so that an adapter made on them can be
        used again.
    """
    model = _empty(config, dtype, attn_implementation)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for name, shape in shapes.items():
            tensor = torch.empty(shape, dtype=dtype, device=device)
            if len(shape) > 1:
                tensor.normal_(std=config.initializer_range)
            else:
                tensor.fill_(0.0 if name.endswith("bias") else 1.0)
            _fill(model, name, tensor, quantize)
    return model


def _empty(config: ChatGLM2Config, dtype: torch.dtype, attn_implementation: str) -> ChatGLM2ForCausalLM:
    """A model without weights, in evaluation mode."""
    with torch.device("meta"):
        model: ChatGLM2ForCausalLM = ChatGLM2ForCausalLM._from_config(
            config, dtype=dtype, attn_implementation=attn_implementation
        )
    model.eval()
    return model


def _fill(model: ChatGLM2ForCausalLM, name: str, tensor: Tensor, quantize: Quantize | None) -> None:
    """Put a weight into its place, and a quantized layer into the place of that which it is the weight of."""
    path, _, kind = name.rpartition(".")
    module = model.get_submodule(path)
    if quantize and kind == "weight" and ".layers." in path and isinstance(module, nn.Linear):
        model.set_submodule(path, quantize(module, tensor))
    else:
        module.register_parameter(kind, nn.Parameter(tensor))


def _shapes_of(config: ChatGLM2Config) -> Shapes:
    with torch.device("meta"):
        model = ChatGLM2ForCausalLM(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _refuse_differences(folder: Path, *, expected: Shapes, found: Shapes) -> None:
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys() - {KNOWN_EXTRA})
    reshaped = [
        f"{name} {found[name]} instead of {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    differences = [
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if differences:
        raise CheckpointError(
            where=str(folder),
            found=f"weights that are not those of its config.json ({'; '.join(differences)})",
            fix="Use weights and config.json of one and the same ChatGLM2 model.",
        )
