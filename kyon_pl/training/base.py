# mypy: allow-untyped-calls
"""The frozen base model of a run: its settings, how it is loaded, and how its layers are prepared for training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch

from kyon_pl.batch import Batch
from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.chatglm2.attention import FA4, VARLEN, choose_attention
from kyon_pl.chatglm2.checkpoint import base_without_weights, load_base, random_base, random_weights
from kyon_pl.chatglm2.configuration import read_config
from kyon_pl.chatglm2.files import iterate_weights, weight_files
from kyon_pl.chatglm2.tokenization import read_tokenizer
from kyon_pl.demo import fetch_base, fetch_base_config
from kyon_pl.errors import CheckpointError, SettingError
from kyon_pl.hub.download import MODEL_FILES, TOKENIZER_FILES
from kyon_pl.lora import Checkpointing, Quantization, check_combination, checkpointed_layers, frozen_dtype, quantizer
from kyon_pl.runs.fingerprint import fingerprint_of_base
from kyon_pl.training.adapter import InitialAdapter
from kyon_pl.training.attention_check import find_difference

log = logging.getLogger(__name__)

AttentionChoice = Literal["auto", "fa4", "varlen", "sdpa", "eager"]


@dataclass(frozen=True)
class FrozenBase:
    """A base model by name, and the settings of its frozen weights; see `ChatGLM2LoRA`.

    Attributes:
        name: Hub id or folder; `demo`; or `random`.
        revision: branch, tag or commit on the Hub.
        random_config: `config.json` of a random base; None: the shape of 6B.
        sharded: shard the frozen weights over ranks.
        quantization: format of the decoder layers' weights; None: the compute precision.
        checkpointing: which layers are checkpointed.
        compiled: compile the decoder layers.
        attention: attention implementation.
    """

    name: str
    revision: str | None
    random_config: str | None
    sharded: bool
    quantization: Quantization | None
    checkpointing: Checkpointing
    compiled: bool
    attention: AttentionChoice

    @cached_property
    def config(self) -> ChatGLM2Config:
        """The model's configuration. From the Hub, only `config.json` is downloaded.

        Raises:
            MissingFileError: there is no such base.
            SettingError: the configuration is not implemented.
        """
        return read_base_config(self.name, self.revision, self.random_config)

    @cached_property
    def folder(self) -> Path | None:
        """The folder with the model's files, downloaded if necessary; None for a random base.

        Raises:
            MissingFileError: there is no such base.
        """
        if self.name == "random":
            return None
        return fetch_base(self.name, self.revision, patterns=[*MODEL_FILES, *TOKENIZER_FILES])

    @property
    def checkpointed_layers(self) -> int:
        """The number of layers that are checkpointed.

        Raises:
            SettingError: `checkpointing` does not fit the number of layers.
        """
        return checkpointed_layers(self.checkpointing, self.config.num_layers)

    def check(self, adapter: InitialAdapter, precision: str, device: torch.device) -> None:
        """Check that the settings fit each other and the device, before any weights are loaded.

        Args:
            adapter: its settings are compared with the quantization.
            precision: `trainer.precision`.
            device: device of this rank.

        Raises:
            SettingError: the precision is not supported, or settings contradict each other.
            MachineError: the device does not support the quantization format.
        """
        lora = adapter.config if self.quantization else adapter.lora  # `config` may download the adapter
        check_combination(self.quantization, lora, sharded=self.sharded, compiled=self.compiled)
        _ = self.checkpointed_layers
        quantizer(self.quantization, frozen_dtype(precision), device)

    def tokenizer(self) -> ChatGLMTokenizer | None:
        """The base's tokenizer; None if it has none.

        Raises:
            MissingFileError: there is no such base.
            CheckpointError: the tokenizer cannot be read, or has more ids than the base has embeddings.
        """
        if self.folder is None or not (self.folder / "tokenizer.model").is_file():
            return None
        tokenizer = read_tokenizer(self.folder)
        if tokenizer.vocab_size > self.config.padded_vocab_size:
            raise CheckpointError(
                where=str(self.folder / "tokenizer.model"),
                found=f"the tokenizer has {tokenizer.vocab_size:,} ids, but config.json gives the base "
                f"{self.config.padded_vocab_size:,}",
                fix="Use tokenizer, config.json and weights of the same base",
            )
        return tokenizer

    def load(
        self,
        dtype: torch.dtype,
        device: torch.device,
        *,
        ranks: int,
        batches: Callable[[], list[Batch]] = list,
    ) -> ChatGLM2ForCausalLM:
        """Load the model, frozen and without an adapter, in evaluation mode.

        Args:
            dtype: compute precision.
            device: device of this rank.
            ranks: number of ranks that share the weights. With more than one, the model has no weights yet;
                `shard_base` reads this rank's share of them.
            batches: returns batches of the run; flash-attn-4 is compared with torch's flash attention on the first one.

        Raises:
            MissingFileError: there is no such base, or files of it are missing.
            CheckpointError: the weights cannot be read, or do not fit the model.
            SettingError: an attention implementation that does not work here.
        """
        attention = self._choose_attention(dtype, device, batches)
        where = f"{device}, sharded over {ranks} ranks" if ranks > 1 else str(device)
        log.info("base: %s in %s on %s", self.name, self.quantization or str(dtype).removeprefix("torch."), where)
        if ranks > 1:
            return base_without_weights(self.folder or self.config, dtype=dtype, attn_implementation=attention)
        make = partial(random_base, self.config) if self.folder is None else partial(load_base, self.folder)
        base = make(
            dtype=dtype,
            device=device,
            attn_implementation=attention,
            quantize=quantizer(self.quantization, dtype, device),
        )
        base.is_loaded_in_4bit = self.quantization == "nf4"  # type: ignore[assignment]  # PEFT reads this flag
        return base

    def _choose_attention(self, dtype: torch.dtype, device: torch.device, batches: Callable[[], list[Batch]]) -> str:
        attention, reason = choose_attention(self.attention, device, dtype)
        tried = batches()[:1] if attention == FA4 else []
        difference = next((find_difference(self.config, batch, dtype, device) for batch in tried), None)
        if difference:
            problem = f"compared with torch's flash attention, {difference}"
            if self.attention == FA4:
                raise SettingError("attention: fa4", problem, "Set it to auto: torch's flash attention is then used.")
            log.warning("flash-attn-4 is not used: %s", problem)
            attention, reason = choose_attention(VARLEN, device, dtype)
        log.info("attention: %s (%s)", attention, reason)
        return attention

    def weights(self, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights by name: memory-mapped from the files, or drawn on the device.

        Args:
            dtype: of random weights; those of files have their own.
            device: of random weights; those of files are on the CPU.
        """
        if self.folder is None:
            return random_weights(self.config, dtype=dtype, device=device)
        return iterate_weights(weight_files(self.folder))

    def fingerprint(self) -> dict[str, str]:
        """Hashes of the base's files, or the configuration of a random base, to compare runs by."""
        if self.folder is None:
            shape = self.config.to_dict() | {"transformers_version": None}  # does not change the weights
            return {f"base: {key}": json.dumps(value, default=str) for key, value in shape.items()}
        return fingerprint_of_base(self.folder)


def read_base_config(name: str, revision: str | None, random_config: str | None) -> ChatGLM2Config:
    """The configuration of a base. From the Hub, only `config.json` is downloaded.

    Args:
        name: `model.base`.
        revision: `model.revision`.
        random_config: `model.random_config`.

    Raises:
        MissingFileError: there is no such base.
        SettingError: the configuration is not implemented.
    """
    if name == "random":
        return read_config(Path(random_config)) if random_config else ChatGLM2Config()
    return read_config(fetch_base_config(name, revision))


def checkpoint_layers(base: ChatGLM2ForCausalLM, checkpointed: int) -> None:
    """Enable activation checkpointing in the first layers; it is active in training mode only.

    Args:
        base: the model with LoRA attached already; otherwise PEFT would make the embedding's output require a
            gradient, which only reentrant checkpointing needs.
        checkpointed: number of layers.
    """
    if checkpointed:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in base.transformer.encoder.layers[checkpointed:]:
        layer.gradient_checkpointing = False  # type: ignore[assignment]


def compile_layers(base: ChatGLM2ForCausalLM) -> None:
    """Compile each decoder layer.

    The embedding's output is made to require a gradient. Otherwise the first layer's input would differ from that of
    the other layers, and the first layer would need a graph of its own.
    """
    base.enable_input_require_grads()
    for layer in base.transformer.encoder.layers:
        layer.compile()
