"""The base that a run names: its shape, its files, its tokenizer, its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.chatglm2.checkpoint import Quantize, load_base, random_base
from kyon_pl.chatglm2.configuration import read_config
from kyon_pl.chatglm2.tokenization import read_tokenizer
from kyon_pl.errors import CheckpointError
from kyon_pl.hub import MODEL_FILES, TOKENIZER_FILES, fetch_config, fetch_model
from kyon_pl.training.fingerprint import fingerprint_of_base


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
        return read_config(fetch_config(self.name, self.revision))

    @cached_property
    def folder(self) -> Path | None:
        """Of its files, which are downloaded if need be; None: it is random.

        Raises:
            MissingFileError: no such base.
        """
        if self.name == "random":
            return None
        return fetch_model(self.name, self.revision, patterns=[*MODEL_FILES, *TOKENIZER_FILES])

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
