# mypy: allow-untyped-calls
"""Building a base model: from a folder, or with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from kyon_pl.chatglm2.configuration import ChatGLM2Config, read_config
from kyon_pl.chatglm2.files import INV_FREQ, Shapes, iterate_weights, read_shapes, weight_files
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.errors import CheckpointError, MissingFileError
from kyon_pl.files import entry, explained, is_of_kind, read_json_object

# what is read of a generation_config.json, with types: transformers computes with values of any type, unchecked
_GENERATION_KINDS: dict[str, type] = {
    **dict.fromkeys(("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "top_k"), int),
    **dict.fromkeys(("temperature", "top_p", "typical_p", "repetition_penalty", "length_penalty"), float),
    **dict.fromkeys(("do_sample", "use_cache"), bool),
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # an id each; several may end a text

Quantize = Callable[[nn.Linear, Tensor], nn.Linear]
"""Takes a linear layer without its weight, and the weight; returns the quantized layer that replaces it."""


def load_base(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attn_implementation: str,
    quantize: Quantize | None = None,
) -> ChatGLM2ForCausalLM:
    """Load a base in the published layout: `config.json`, and weights as pickle or safetensors, in shards or whole.

    Weights are memory-mapped, moved to the device one by one, and converted there. Host memory holds no copy of them,
    unless the device is the CPU and `dtype` differs from the files'. Pickles are loaded with `weights_only`, and no
    code of the folder is run. All names, shapes and dtypes are checked before the first weight is read.

    Args:
        folder: from `kyon_pl.demo.fetch_base`.
        dtype: of all weights that are not quantized.
        device: of the model.
        attn_implementation: `fa4`, `varlen`, `sdpa` or `eager`.
        quantize: replaces each linear layer of the decoder when its weight is on the device.

    Returns:
        The model, in evaluation mode.

    Raises:
        MissingFileError: there is no `config.json`, there are no weights, or a shard of the index is missing.
        SettingError: the configuration asks for something that is not implemented.
        CheckpointError: a file cannot be read, or weights are missing, unexpected or of another shape.
    """
    model = _checked_model(folder, dtype, attn_implementation)
    for name, tensor in iterate_weights(weight_files(folder)):
        _set_weight(model, name, tensor.to(device).to(dtype), quantize)  # converted on the device, to save host memory
    return model


def _checked_model(folder: Path, dtype: torch.dtype, attn_implementation: str) -> ChatGLM2ForCausalLM:
    """A model on the meta device, after the files of a folder have been checked against its configuration."""
    if not (folder / "config.json").is_file():
        raise MissingFileError(str(folder), "no config.json", "Give the folder of a ChatGLM2 base.")
    config = read_config(folder)
    generation_config = read_generation_config(folder)
    check_weights(folder, config)
    model = _empty_model(config, dtype, attn_implementation)
    if generation_config:
        model.generation_config = generation_config
    return model


def base_without_weights(
    base: Path | ChatGLM2Config, *, dtype: torch.dtype, attn_implementation: str
) -> ChatGLM2ForCausalLM:
    """Build a model on the CPU whose weights take no memory: each is one zero that is expanded to its shape.

    An adapter can be attached to it; its weights are to be replaced before it computes.

    Args:
        base: a folder as `load_base` takes it, or the configuration of a random base.
        dtype: of all weights.
        attn_implementation: `varlen`, `sdpa` or `eager`.

    Returns:
        The model, in evaluation mode.

    Raises:
        KyonError: as `load_base`.
    """
    if isinstance(base, Path):
        model = _checked_model(base, dtype, attn_implementation)
    else:
        model = _empty_model(base, dtype, attn_implementation)
    for name, tensor in model.state_dict().items():
        _set_weight(model, name, torch.zeros((), dtype=dtype).expand(tensor.shape), None)
    return model


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """Read lengths, sampling and token ids from the `generation_config.json` of a model; None if there is none.

    Other keys are left out, such as `output_hidden_states` and `cache_implementation`.

    Raises:
        CheckpointError: it cannot be read, or a value is of another type.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    content = read_json_object(file)
    settings: dict[str, Any] = {}
    for key, kind in _GENERATION_KINDS.items():
        if content.get(key) is not None:
            settings[key] = entry(content, key, kind, file)
    for key in _TOKENS:
        if content.get(key) is not None:
            several = isinstance(content[key], list) and all(is_of_kind(one, int) for one in content[key])
            settings[key] = content[key] if several and content[key] else entry(content, key, int, file)
    with explained("transformers", file):
        return GenerationConfig(**settings)


def check_weights(
    folder: Path, config: PreTrainedConfig, model_class: type[PreTrainedModel] = ChatGLM2ForCausalLM
) -> None:
    """Check the names, shapes and dtypes of a folder's weights against a configuration, without reading the weights.

    Args:
        folder: with the weights.
        config: of the model.
        model_class: ChatGLM2's, or GLM's.

    Raises:
        MissingFileError: there are no weights, or a shard of the index is missing.
        CheckpointError: a file cannot be read, or weights are missing, unexpected or of another shape.
    """
    shapes = read_shapes(weight_files(folder))
    if (layers := config.num_hidden_layers) > len(shapes):  # building millions of layers takes minutes
        found = f"its config.json has {layers:,} layers, and its files only {len(shapes):,} weights"
        raise CheckpointError(str(folder), found, "Use the weights and config.json of the same model.")
    with torch.device("meta"), explained("transformers", folder / "config.json"):
        model = model_class(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:  # the head is the embedding, and not saved again
        expected.pop("lm_head.weight", None)
    if differences := _differences(expected, shapes):
        found = f"its weights do not match its config.json ({'; '.join(differences)})"
        raise CheckpointError(str(folder), found, "Use the weights and config.json of the same ChatGLM2 model.")


def random_base(
    config: ChatGLM2Config,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attn_implementation: str,
    quantize: Quantize | None = None,
) -> ChatGLM2ForCausalLM:
    """Build a model with random weights, directly on the device in its final dtype: 12.5 GB for 6B in float16.

    Args:
        config: of the model.
        dtype: of all weights that are not quantized.
        device: of the model.
        attn_implementation: `fa4`, `varlen`, `sdpa` or `eager`.
        quantize: as in `load_base`.

    Returns:
        The model, in evaluation mode: normal weights with standard deviation `config.initializer_range`, norms of one,
        biases of zero. The seed is fixed: on one kind of device the weights are always the same, so an adapter trained
        on them can be used again.
    """
    model = _empty_model(config, dtype, attn_implementation)
    for name, tensor in random_weights(config, dtype=dtype, device=device):
        _set_weight(model, name, tensor, quantize)
    return model


def random_weights(config: ChatGLM2Config, *, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of `random_base` one by one, each with its name.

    Args:
        config: of the model.
        dtype: of all weights.
        device: on which they are drawn.
    """
    # a copy: a model shares its configuration, and another one would change its attention
    empty = _empty_model(copy.deepcopy(config), dtype, "sdpa")
    shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    generator = torch.Generator("cpu" if device.type == "meta" else device).manual_seed(0)
    for name, shape in shapes.items():
        tensor = torch.empty(shape, dtype=dtype, device=device)
        if len(shape) > 1:
            tensor.normal_(std=config.initializer_range, generator=generator)
        else:
            tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        yield name, tensor


def _empty_model(config: ChatGLM2Config, dtype: torch.dtype, attn_implementation: str) -> ChatGLM2ForCausalLM:
    """A model on the meta device, in evaluation mode."""
    with torch.device("meta"):
        model: ChatGLM2ForCausalLM = ChatGLM2ForCausalLM._from_config(
            config, dtype=dtype, attn_implementation=attn_implementation
        )
    model.eval()
    return model


def _set_weight(model: ChatGLM2ForCausalLM, name: str, tensor: Tensor, quantize: Quantize | None) -> None:
    """Set a weight by name, or replace its linear layer by a quantized one."""
    path, _, kind = name.rpartition(".")
    module = model.get_submodule(path)
    if quantize and kind == "weight" and ".layers." in path and isinstance(module, nn.Linear):
        model.set_submodule(path, quantize(module, tensor))
    else:
        module.register_parameter(kind, nn.Parameter(tensor))


def _differences(expected: Shapes, found: Shapes) -> list[str]:
    """Missing, unexpected and reshaped weights in words: how many, and the first three."""
    reshaped = [
        f"{name} {found[name]} instead of {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys() - {INV_FREQ}),
        "of another shape": reshaped,
    }
    return [
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in kinds.items()
        if names
    ]
