# mypy: allow-untyped-calls
"""A base on disk to a model in memory: every weight accounted for before the first one is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import GenerationConfig
from transformers.modeling_utils import load_state_dict

from kyon_pl.chatglm2.configuration import ChatGLM2Config, read_config
from kyon_pl.chatglm2.json_object import read_json_object
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.errors import CheckpointError, MissingFileError

# Published with the weights and derived from the configuration; the model computes it (see attention.rotary_angles).
KNOWN_EXTRA = "transformer.rotary_pos_emb.inv_freq"

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# what torch.load may raise at a damaged file, by the documentation of pickle and by trial
UNREADABLE = (
    OSError,
    RuntimeError,
    UnpicklingError,
    SafetensorError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
)

Shapes = dict[str, tuple[int, ...]]
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
        folder: what `hub.fetch_model` returned.
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
    for name, tensor in _weights_in(weight_files(folder)):
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
    _refuse_differences(folder, expected=_shapes_of(config), found=_shapes_in(weight_files(folder)))


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


def _weights_in(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its name, mapped from disk, behind a progress bar on a terminal."""
    total = sum(file.stat().st_size for file in files)
    with tqdm(desc="loading base", total=total, unit="B", unit_scale=True, delay=1, disable=None) as bar:
        for file in files:
            for name, tensor in load_state_dict(file, map_location="cpu", weights_only=True).items():
                if name != KNOWN_EXTRA:
                    yield name, tensor
                bar.update(tensor.nbytes)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a base's weights, safetensors before pickle, as transformers chooses.

    Raises:
        MissingFileError: no weights, or a shard that the index names is not there.
        CheckpointError: an index that does not tell which file holds which weight.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [_shard(folder / shard, index) for shard in _shards(index)]
    found = "neither model.safetensors nor pytorch_model.bin, whole or in shards with their index.json"
    raise MissingFileError(
        where=str(folder), found=found, fix="Give the folder of a ChatGLM2 base, or download it again."
    )


def _shards(index: Path) -> list[str]:
    weight_map = read_json_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        found = "its weight_map does not tell which file of this folder holds which weight"
        raise CheckpointError(str(index), found, "Download this file again.")
    return sorted(set(names))


def _shard(path: Path, index: Path) -> Path:
    if not path.is_file():
        found = f"not there, though {index.name} names it"
        raise MissingFileError(where=str(path), found=found, fix="Download the base again.")
    return path


def _shapes_of(config: ChatGLM2Config) -> Shapes:
    with torch.device("meta"):
        model = ChatGLM2ForCausalLM(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _shapes_in(files: list[Path]) -> Shapes:
    shapes: Shapes = {}
    for file in files:
        try:
            tensors = load_state_dict(file, map_location="meta", weights_only=True)
        except UNREADABLE as error:
            fix = "Download this file again; it may be cut short, or hold something else than tensors."
            raise CheckpointError(str(file), f"weights that cannot be read ({why_unreadable(error)})", fix) from error
        if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
            fix = "Give the weights as a dictionary of tensors by name, as torch.save(model.state_dict()) writes them."
            raise CheckpointError(str(file), f"a {type(tensors).__name__} in place of weights by name", fix)
        for name, tensor in tensors.items():
            _refuse_other_kinds(file, name, tensor)
        shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return shapes


def why_unreadable(error: Exception) -> str:
    """What is wrong with a file of weights, in words; torch's own advise to run the code that such a file may hold."""
    if isinstance(error, UnpicklingError):
        return "a pickle of something else than tensors, which is never run here, or a damaged one"
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")


def _refuse_other_kinds(file: Path, name: str, tensor: object) -> None:
    if isinstance(tensor, torch.Tensor) and tensor.dtype in _DTYPES:
        return
    kind = str(tensor.dtype).removeprefix("torch.") if isinstance(tensor, torch.Tensor) else type(tensor).__name__
    fix = "Give a base that is not quantized: weights in float16, bfloat16 or float32, each under its own name."
    raise CheckpointError(f"{file}: {name}", f"{kind} in place of a tensor of floating-point numbers", fix)


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
