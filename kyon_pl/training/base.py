# mypy: allow-untyped-calls
"""The frozen base of a run: loaded by name, its layers checkpointed, compiled or sharded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.chatglm2.checkpoint import Quantize, load_base, random_base
from kyon_pl.chatglm2.configuration import read_config
from kyon_pl.chatglm2.tokenization import read_tokenizer
from kyon_pl.demo import fetch_base, fetch_base_config
from kyon_pl.errors import CheckpointError
from kyon_pl.hub.download import MODEL_FILES, TOKENIZER_FILES
from kyon_pl.runs.fingerprint import fingerprint_of_base


@dataclass(frozen=True)
class NamedBase:
    """A base as settings name it; see `ChatGLM2LoRA`.

    Attributes:
        name: Hub id or folder, or `demo`, or `random`.
        revision: on the Hub.
        random_config: the shape of a random one; None: that of 6B.
    """

    name: str
    revision: str | None
    random_config: str | None

    @cached_property
    def config(self) -> ChatGLM2Config:
        """Its shape; from the Hub this fetches its config.json, one kilobyte.

        Raises:
            MissingFileError: no such base.
            SettingError: a configuration that is not implemented.
        """
        if self.name == "random":
            return read_config(Path(self.random_config)) if self.random_config else ChatGLM2Config()
        return read_config(fetch_base_config(self.name, self.revision))

    @cached_property
    def folder(self) -> Path | None:
        """Of its files, which are downloaded if need be; None: it is random.

        Raises:
            MissingFileError: no such base.
        """
        if self.name == "random":
            return None
        return fetch_base(self.name, self.revision, patterns=[*MODEL_FILES, *TOKENIZER_FILES])

    def tokenizer(self) -> ChatGLMTokenizer | None:
        """Its tokenizer, or None where it has none.

        Raises:
            MissingFileError: no such base.
            CheckpointError: the tokenizer cannot be read, or has ids that the base has no embedding for.
        """
        if self.folder is None or not (self.folder / "tokenizer.model").is_file():
            return None
        tokenizer = read_tokenizer(self.folder)
        if tokenizer.vocab_size > self.config.padded_vocab_size:
            raise CheckpointError(
                where=str(self.folder / "tokenizer.model"),
                found=f"{tokenizer.vocab_size:,} ids, and by config.json the base has "
                f"{self.config.padded_vocab_size:,}",
                fix="Use tokenizer, config.json and weights of one and the same base",
            )
        return tokenizer

    def load(
        self, *, dtype: torch.dtype, device: torch.device, attn_implementation: str, quantize: Quantize | None
    ) -> ChatGLM2ForCausalLM:
        """The model, in evaluation mode; see `load_base` and `random_base`.

        Raises:
            MissingFileError: no such base, or not all of it.
            CheckpointError: weights that do not fit the model, or cannot be read.
        """
        make = partial(random_base, self.config) if self.folder is None else partial(load_base, self.folder)
        return make(dtype=dtype, device=device, attn_implementation=attn_implementation, quantize=quantize)

    def fingerprint(self) -> dict[str, str]:
        """What tells it from others."""
        if self.folder is None:
            shape = self.config.to_dict() | {"transformers_version": None}  # another one makes no other base
            return {f"base: {key}": json.dumps(value, default=str) for key, value in shape.items()}
        return fingerprint_of_base(self.folder)


def checkpoint_layers(base: ChatGLM2ForCausalLM, checkpointed: int) -> None:
    """Have the first layers keep only their input for the backward pass; in training mode they do.

    Args:
        base: with LoRA attached: PEFT would otherwise make the embedding's output ask for a gradient, which only the
            reentrant kind needs.
        checkpointed: how many.
    """
    if checkpointed:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in base.transformer.encoder.layers[checkpointed:]:
        layer.gradient_checkpointing = False  # type: ignore[assignment]


def compile_layers(base: ChatGLM2ForCausalLM) -> None:
    """Compile each layer, all of them as one graph: the input of the first would be frozen otherwise, and another."""
    base.enable_input_require_grads()
    for layer in base.transformer.encoder.layers:
        layer.compile()


def shard_base(base: ChatGLM2ForCausalLM, device: torch.device) -> None:
    """Leave each rank its share of every frozen weight, part by part: embedding, layers, head, and the last norm.

    The ranks gather a part when it is to compute, forward and backward, and drop it behind that. Weights are gathered
    as they are, so that all numbers are those of a whole base, bit by bit; every rank has to make every forward pass.

    The adapter is no part of it. It is megabytes, DDP has it whole on every rank, and so gradients, clipping, guards
    and checkpoints are DDP's. What is left has one dtype and no gradient: FSDP2 gathers it, and reduces nothing.

    Args:
        base: with LoRA attached, on the CPU; a part goes to the device, is cut there, and only the share stays. In the
            dtype of its files it is these files, mapped, and there once a machine; converted, each rank has a copy.
        device: of this rank; the process group is there.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    trained = {parameter for parameter in base.parameters() if parameter.requires_grad}
    # the inner model comes last, and is the root, which FSDP2 wants to be called first: PEFT calls `base.forward`
    # and not `base`, and so passes by its hooks
    layers = base.transformer.encoder.layers
    for part in (base.get_input_embeddings(), *layers, base.get_output_embeddings(), base.transformer):
        fully_shard(part, mesh=mesh, ignored_params=trained)


def keep_from_ddp(module: torch.nn.Module) -> None:
    """Have DDP pass over the shares, or it would send the first rank's to all others at its start.

    This is torch's way to tell it, for all its underscore; Lightning looks there too, in validate, test and predict.

    Args:
        module: what the strategy wraps, the base in it.
    """
    shares = [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, shares)
