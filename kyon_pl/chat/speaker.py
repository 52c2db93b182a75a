# mypy: allow-untyped-calls
"""A model that replies: a base with its adapter, or a merged model, with what it was trained to be asked in."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import nn
from transformers import AutoTokenizer, GlmForCausalLM

from kyon_pl.adapters import SETTINGS, adapter_base, find_adapter
from kyon_pl.chat.characters import Pieces
from kyon_pl.chatglm2.checkpoint import load_base
from kyon_pl.chatglm2.configuration import read_config
from kyon_pl.chatglm2.generation import stream_reply
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.tokenization import read_tokenizer
from kyon_pl.data.prompt import TEMPLATES, TrainTurns
from kyon_pl.errors import CheckpointError, SettingError
from kyon_pl.hub import MODEL_FILES, TOKENIZER_FILES, fetch_model
from kyon_pl.logs import from_here
from kyon_pl.lora.adapter import load_adapter

log = logging.getLogger(__name__)

_SMALL = 500_000_000  # parameters: float32 on a CPU up to here, and bfloat16 above


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: the longest reply.
        temperature: divides the logits; 0: always the likeliest token.
        top_p: draw from the likeliest tokens that make up this much probability.
        repetition_penalty: over 1, tokens that were there become less likely.
        seed: of the draws.

    Raises:
        SettingError: a number that none of these can be.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for key, possible, fix in (
            ("max_new_tokens", self.max_new_tokens >= 1, "Set 1 or more."),
            ("temperature", 0 <= self.temperature < float("inf"), "Set 0 for the likeliest token, or about 0.8."),
            ("top_p", 0 < self.top_p <= 1, "Set 1 for no limit, or less."),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "Set 1 for none, or about 1.1."),
        ):
            if not possible:
                raise SettingError(key, f"{getattr(self, key)} is impossible", fix)


@dataclass(frozen=True)
class Said:
    """A reply.

    Attributes:
        text: of it.
        stopped: the model ended it itself.
    """

    text: str
    stopped: bool


@dataclass
class Speaker:
    """A model that replies.

    Attributes:
        model: in evaluation mode.
        tokenizer: its own.
        name: what it is, for people.
        template: how it was trained to be asked.
        train_turns: whether earlier replies ended in training.
        tuned: it is a base with an adapter, which can be taken away for a while.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    template: str
    train_turns: TrainTurns
    tuned: bool

    def reply(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_text: Callable[[str], object] = lambda text: None,
        adapter: bool = True,
    ) -> Said:
        """Reply to a prompt; Ctrl-C ends the reply, and what was said until then is the reply.

        Args:
            prompt: its ids.
            sampling: how tokens are chosen.
            on_text: told the reply piece by piece.
            adapter: False: let the base reply.
        """
        pieces = Pieces(self.tokenizer, on_text)
        model: Any = self.model
        with nullcontext() if adapter or not self.tuned else model.disable_adapter():
            try:
                reply = stream_reply(
                    model,
                    prompt,
                    max_new_tokens=sampling.max_new_tokens,
                    on_token=pieces.put,
                    eos_token_id=self.tokenizer.eos_token_id,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    repetition_penalty=sampling.repetition_penalty,
                    seed=sampling.seed,
                )
            except KeyboardInterrupt:
                return Said(pieces.text, stopped=False)
        pieces.end()
        return Said(pieces.text, reply.stopped)


def load_speaker(
    adapter: str | None,
    which: Literal["best", "last"],
    base: str | None,
    revision: str | None,
    template: str | None,
) -> Speaker:
    """Load what a word means onto the GPU, or the CPU where there is none.

    Args:
        adapter: as `find_adapter` takes it; or the folder of a merged model, ChatGLM2 or GLM.
        which: of a run.
        base: for the adapter; None: the one that it names.
        revision: of the base on the Hub.
        template: must be the one that the adapter was trained with, where that is recorded; None: that one.

    Raises:
        SettingError: a template that does not exist, or another one than the adapter's.
        MissingFileError: no such adapter or base.
        CheckpointError: files that cannot be read, or do not fit together.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if adapter and is_model(folder := Path(adapter).expanduser()):
        model, tokenizer = _merged(folder, device)
        return Speaker(model, tokenizer, str(folder), *_wording(folder, template), tuned=False)
    found = find_adapter(adapter, which)
    base_name = base or adapter_base(found)
    if base_name == "random":
        fix = "Give --base: a folder or Hub id with weights"
        raise SettingError("base", "the adapter was trained on random weights, which lie nowhere", fix)
    wording = _wording(found, template)
    folder = fetch_model(base_name, revision, patterns=[*MODEL_FILES, *TOKENIZER_FILES])
    tokenizer = read_tokenizer(folder)
    model = load_adapter(_chatglm(folder, device), found, base_name).eval()
    return Speaker(model, tokenizer, f"{base_name} with {from_here(found)}", *wording, tuned=True)


def is_model(folder: Path) -> bool:
    """Whether a folder holds a whole model, and no adapter."""
    return (folder / "config.json").is_file() and not (folder / SETTINGS).is_file()


def _chatglm(folder: Path, device: torch.device) -> ChatGLM2ForCausalLM:
    dtype = _dtype(device, read_config(folder).parameter_count)
    log.info("base: %s in %s on %s", from_here(folder), str(dtype).removeprefix("torch."), device)
    return load_base(folder, dtype=dtype, device=device, attn_implementation="sdpa")


def _merged(folder: Path, device: torch.device) -> tuple[nn.Module, Any]:
    if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") != "glm":
        return _chatglm(folder, device), read_tokenizer(folder)
    model = GlmForCausalLM.from_pretrained(folder, dtype="auto", device_map={"": device}, local_files_only=True)
    if device.type == "cpu" and model.num_parameters() < _SMALL:
        model = model.float()
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _dtype(device: torch.device, parameters: int) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32 if parameters < _SMALL else torch.bfloat16


def _wording(folder: Path, template: str | None) -> tuple[str, TrainTurns]:
    """Template and trained turns, as the `config.yaml` of a run's adapter records them."""
    file = folder / "config.yaml"
    try:
        recorded = yaml.safe_load(file.read_text(encoding="utf-8"))["data"] if file.is_file() else {}
        trained_with = recorded.get("template", "raw") if file.is_file() else None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            str(file), f"it cannot be read ({type(error).__name__})", "Use another adapter"
        ) from error
    if template and template not in TEMPLATES:
        raise SettingError("template", f"there is no {template!r}", f"Choose one of: {', '.join(TEMPLATES)}.")
    if template and trained_with and template != trained_with:
        fix = "Leave --template out: asked in other words, it would not answer as it learned to"
        raise SettingError("template", f"{template!r}, and the adapter was trained with {trained_with!r}", fix)
    return template or trained_with or "raw", "all" if recorded.get("train_turns") == "all" else "last"
