# mypy: allow-untyped-calls
"""The model of a chat on this machine, and how it is loaded: a base with adapters, or a merged model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoTokenizer, GlmConfig, GlmForCausalLM

from kyon_pl.chat.model import ChatModel, ChatReply, Sampling, StopReply, TextStreamer, choose_format
from kyon_pl.chatglm2.checkpoint import check_weights, load_base, read_generation_config
from kyon_pl.chatglm2.configuration import read_config
from kyon_pl.chatglm2.generation import stream_reply
from kyon_pl.chatglm2.glm import read_glm_config
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.tokenization import check_tokenizer_files, read_tokenizer
from kyon_pl.demo import fetch_base
from kyon_pl.disk import expand_home
from kyon_pl.errors import CheckpointError, MachineError, MissingFileError, SettingError
from kyon_pl.files import COPY_AGAIN, explained, read_json_object
from kyon_pl.hub.download import MODEL_FILES, TOKENIZER_FILES
from kyon_pl.logs import from_here
from kyon_pl.lora.adapter import add_adapter, load_adapter
from kyon_pl.runs.adapters import SETTINGS, adapter_base, base_with_weights, find_adapter
from kyon_pl.runs.facts import read_sources
from kyon_pl.runs.integrity import CHECKPOINTS
from kyon_pl.runs.prompt_format import PromptFormat

log = logging.getLogger(__name__)

_MAX_FLOAT32_PARAMETERS = 500_000_000  # a larger model is loaded in bfloat16 on a CPU


@dataclass(kw_only=True)
class LocalModel(ChatModel):
    """A base with adapters, or a merged model, on this machine.

    Attributes:
        model: in evaluation mode.
        peft_names: PEFT's name of each adapter by its name here.
    """

    model: nn.Module
    peft_names: Mapping[str, str] = field(default_factory=dict)

    def reply(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_text: Callable[[str], object] = lambda text: None,
        adapter: str | None = "",
    ) -> ChatReply:
        """As in `ChatModel`."""
        streamer = TextStreamer(self.tokenizer, on_text)
        with self._using_adapter(adapter):
            try:
                reply = stream_reply(
                    self.model,
                    prompt,
                    max_new_tokens=sampling.max_new_tokens,
                    on_token=streamer.put,
                    eos_token_id=self.tokenizer.eos_token_id,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    repetition_penalty=sampling.repetition_penalty,
                    seed=sampling.seed,
                )
                streamer.end()
            except (KeyboardInterrupt, StopReply):
                return ChatReply(streamer.text, stopped=False, interrupted=True)
            except torch.OutOfMemoryError as error:
                fix = "Lower --max_tokens, or use a GPU with more memory"
                raise MachineError("memory of the GPU", "it is not enough for this prompt", fix) from error
        return ChatReply(streamer.text, reply.stopped)

    def _using_adapter(self, adapter: str | None) -> AbstractContextManager[None]:
        model: Any = self.model
        if not self.adapters:
            return nullcontext()
        if adapter is None:
            return model.disable_adapter()  # type: ignore[no-any-return]
        model.set_adapter(self.peft_names[adapter or self.adapters[0]], inference_mode=True)
        return nullcontext()


def load_chat_model(
    adapters: str | Sequence[str] | None,
    which: Literal["best", "last"] | None,
    base: str | None,
    revision: str | None,
    template: str | None,
) -> LocalModel:
    """Load a base with its adapters, or a merged model, onto the GPU, or onto the CPU if there is none.

    Args:
        adapters: as for `find_adapter`, one or several; or the folder of a merged model, ChatGLM2 or GLM.
        which: the checkpoint to use of a run; None: the best, or the last if there is no best one.
        base: folder or Hub id of the base; None: the base that the first adapter names.
        revision: of the base on the Hub.
        template: None: the template of the adapter's training. If that is recorded, no other is accepted.

    Raises:
        SettingError: an unknown template, or not the adapter's; adapters with different bases or prompt formats; a
            merged model together with adapters; a base with random weights.
        MissingFileError: no such adapter or base.
        CheckpointError: files that cannot be read, or do not match.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names: list[str | None] = [adapters] if adapters is None or isinstance(adapters, str) else [*adapters]
    if not names:
        raise SettingError("adapter", "an empty list", "Name an adapter, or leave it out for the newest run")
    if merged := [folder for name in names if name and is_merged_model(folder := expand_home(name))]:
        if len(names) > 1:
            fix = "Load it alone, or name adapters of one base"
            raise SettingError("adapter", f"{merged[0]} is a merged model, which takes no adapter", fix)
        model, tokenizer = _load_merged(merged[0], device)
        form = choose_format(merged[0], template)
        return LocalModel(tokenizer, str(merged[0]), form.template, form.train_turns, roles=form.roles, model=model)
    folders = [find_adapter(name, which) for name in names]
    first, *more = folders
    base_name = base_with_weights(base, first)
    form = choose_format(first, template)
    for folder in more:
        _check_compatible(folder, first, None if base else base_name, form, template)
    base_folder = fetch_base(base_name, revision, patterns=[*MODEL_FILES, *TOKENIZER_FILES])
    tokenizer = read_tokenizer(base_folder)
    peft_model = load_adapter(_load_chatglm(base_folder, device), first, base_name)
    peft_names = {name: f"adapter_{i}" if i else "default" for i, name in enumerate(_adapter_names(folders))}
    for folder, peft_name in zip(more, [*peft_names.values()][1:], strict=True):
        add_adapter(peft_model, folder, base_name, peft_name)
    return LocalModel(
        tokenizer,
        base_name,
        form.template,
        form.train_turns,
        tuple(peft_names),
        read_sources(first),
        form.roles,
        model=peft_model.eval(),
        peft_names=peft_names,
    )


def _check_compatible(
    folder: Path, first: Path, base_name: str | None, form: PromptFormat, template: str | None
) -> None:
    """Check base and prompt format of a further adapter against the first; bases only if `base_name` is given."""
    fix = "Load one adapter at a time"
    if base_name and not _is_same_base(own_base := adapter_base(folder), base_name):
        found = f"{from_here(folder)} was trained on {own_base}, and {from_here(first)} on {base_name}"
        raise SettingError("adapter", found, fix)
    forms = choose_format(folder, template), form
    own, other = (f"template {one.template!r} and train_turns {one.train_turns!r}" for one in forms)
    if own != other:
        found = f"{from_here(folder)} was trained with {own}, and {from_here(first)} with {other}"
        raise SettingError("adapter", found, fix)


def _is_same_base(one: str, other: str) -> bool:
    folders = [expand_home(name) for name in (one, other)]
    return one == other or (folders[0].exists() and folders[0].resolve() == folders[1].resolve())


def _adapter_names(folders: Sequence[Path]) -> list[str]:
    """A unique name for each adapter: that of its run, or of its folder if the run has several; numbered if needed."""
    runs = [folder.resolve().parents[1] if folder.parent.name == CHECKPOINTS else None for folder in folders]
    names: list[str] = []
    for folder, run in zip(folders, runs, strict=True):
        name = run.name if run and runs.count(run) == 1 else folder.name
        numbered = (f"{name}-{number}" for number in count(2))
        names.append(name if name not in names else next(one for one in numbered if one not in names))
    return names


def is_merged_model(folder: Path) -> bool:
    """Whether a folder holds a whole model, not an adapter."""
    return (folder / "config.json").is_file() and not (folder / SETTINGS).is_file()


def _load_chatglm(folder: Path, device: torch.device) -> ChatGLM2ForCausalLM:
    dtype = _choose_dtype(device, read_config(folder).parameter_count)
    log.info("base: %s in %s on %s", from_here(folder), str(dtype).removeprefix("torch."), device)
    return load_base(folder, dtype=dtype, device=device, attn_implementation="sdpa")


def _load_merged(folder: Path, device: torch.device) -> tuple[nn.Module, Any]:
    if read_json_object(folder / "config.json").get("model_type") != "glm":
        return _load_chatglm(folder, device), read_tokenizer(folder)
    config = read_glm_config(folder)
    tokenizer = _read_glm_tokenizer(folder, config)  # before the weights, which take longer
    generation_config = read_generation_config(folder)
    check_weights(folder, config, GlmForCausalLM)
    with explained("transformers", folder, "Merge the adapter again, or copy the folder again."):
        model = GlmForCausalLM.from_pretrained(
            folder,
            config=config,
            attn_implementation="sdpa",
            dtype="auto",
            device_map={"": device},
            local_files_only=True,
        )
    if generation_config:
        model.generation_config = generation_config  # not what transformers has read, which is not checked
    if device.type == "cpu" and model.num_parameters() < _MAX_FLOAT32_PARAMETERS:
        model = model.float()
    return model.eval(), tokenizer


def _read_glm_tokenizer(folder: Path, config: GlmConfig) -> Any:
    check_tokenizer_files(folder)
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise MissingFileError(str(folder), "no tokenizer.json", "Merge the adapter again, or copy the folder again.")
    with explained("tokenizers", file):
        try:
            Tokenizer.from_file(str(file))
        except Exception as error:  # the class that tokenizers raises for a file of another layout
            raise CheckpointError(str(file), f"tokenizers refuses it: {error}", COPY_AGAIN) from error
    with explained("transformers", f"tokenizer of {folder}"):
        # with the checked config: AutoTokenizer would read config.json with all keys, such as a num_labels of 10**30
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)
        ids = tokenizer("a", truncation=True)["input_ids"]  # some settings are wrong only now
        tokenizer.decode(ids)
    if not ids:
        raise CheckpointError(str(file), "it encodes a text as no tokens", COPY_AGAIN)
    return tokenizer


def _choose_dtype(device: torch.device, parameters: int) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32 if parameters < _MAX_FLOAT32_PARAMETERS else torch.bfloat16
