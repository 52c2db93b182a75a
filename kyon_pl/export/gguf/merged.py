"""The folder of `kyon-pl merge --format gguf`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor

from kyon_pl.chatglm2.configuration import ChatGLM2Config
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.export.formats import FORMATS, copy_tokenizer, output_differences
from kyon_pl.export.gguf.chat_template import jinja_template, modelfile
from kyon_pl.export.gguf.file import Contents, GgufTensors, TensorInfo, check_contents, writing_gguf
from kyon_pl.export.gguf.layout import Quantization, Value, model_settings, tensor_name, tensor_type
from kyon_pl.export.gguf.vocabulary import PREFIX, read_vocabulary
from kyon_pl.export.layerwise import CHATGLM_PARTS, empty_model, names_in
from kyon_pl.export.merging import merge_parts
from kyon_pl.export.staging import check_free_space
from kyon_pl.runs.prompt_format import PromptFormat

CONTEXT_TOKENS = 4096
"""`-c` in command lines: keys and values of the model's 32,768 tokens would take 0.9 GB."""

SAMPLING = {"temperature": 0.8, "top_p": 0.8, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
"""As `kyon-pl chat` samples for a role, by Ollama's names."""


@dataclass(frozen=True)
class GgufExport:
    """What to write beside the merged weights.

    Attributes:
        name: of the model; the file is called `NAME-QUANTIZATION.gguf`.
        quantization: how weights are stored. Norms and biases are float32.
        form: how the prompts of the training were worded.
        system: the system prompt of conversations without one; can be empty.
    """

    name: str
    quantization: Quantization
    form: PromptFormat
    system: str

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.name}-{self.quantization}.gguf"


def write_gguf(
    live: ChatGLM2ForCausalLM, weights: Mapping[str, Tensor], base: Path, folder: Path, export: GgufExport
) -> float:
    """Merge all parts into a GGUF, read it again, and write the files that go with it.

    Args:
        live: as for `kyon_pl.export.merging.merge_parts`.
        weights: of the base, by name.
        base: folder of the base, with `tokenizer.model`.
        folder: to write to.
        export: what to write.

    Returns:
        The relative difference of the logits.

    Raises:
        CheckpointError: llama.cpp cannot hold the model or its tokenizer, or the file differs from base and adapter.
        SettingError: the system prompt cannot be written in a Modelfile, or the template does not exist.
        MachineError: the disk is full.
    """
    config, file = cast(ChatGLM2Config, live.config), folder / export.file
    names = {name: tensor_name(name) for part in CHATGLM_PARTS.names(config) for name in names_in(part, weights)}
    vocabulary = read_vocabulary(base / "tokenizer.model", config.padded_vocab_size)
    contents = Contents(
        _settings(config, export) | vocabulary.settings(),
        {names[name]: _tensor_info(weights[name], export.quantization) for name in names},
        vocabulary,
    )
    check_free_space(folder, contents.size_bytes)
    _write_texts(folder, export)
    copy_tokenizer(base, folder)
    with writing_gguf(file, contents) as writer:
        outputs = merge_parts(live, weights, lambda name, tensor: writer.add(names[name], tensor))
    check_contents(file, writer)
    model = empty_model(ChatGLM2ForCausalLM, config)
    *_, (_, of_logits) = output_differences(model, FORMATS["chatglm"], GgufTensors(file, names), outputs)
    return of_logits


def server_command(folder: str, export: GgufExport) -> str:
    """The command that starts llama.cpp's server; arguments as for `quantize_commands`."""
    return f"llama-server -m {folder}/{export.file} -c {CONTEXT_TOKENS} --jinja"


def quantize_commands(folder: str, export: GgufExport) -> str:
    """How to make a 4-bit file: the command of llama.cpp, and that of Ollama.

    Args:
        folder: as the commands shall name it.
        export: what was written there.
    """
    if export.quantization == "q8_0":
        return "merge again with --quantization f16, which llama-quantize and `ollama create -q` start from"
    return (
        f"llama-quantize {folder}/{export.file} {folder}/{export.name}-q4_k_m.gguf Q4_K_M"
        f"\nollama create {export.name} -q q4_K_M -f {folder}/Modelfile"
    )


def _settings(config: ChatGLM2Config, export: GgufExport) -> dict[str, Value]:
    return {
        "general.type": "model",
        "general.name": export.name,
        **model_settings(config, export.quantization),
        "general.sampling.temp": SAMPLING["temperature"],
        "general.sampling.top_p": SAMPLING["top_p"],
        "general.sampling.top_k": int(SAMPLING["top_k"]),
        "general.sampling.min_p": SAMPLING["min_p"],
        "general.sampling.penalty_repeat": SAMPLING["repeat_penalty"],
        "tokenizer.chat_template": jinja_template(export.form, export.system),
    }


def _tensor_info(tensor: Tensor, quantization: Quantization) -> TensorInfo:
    return TensorInfo(tuple(tensor.shape), tensor_type(tensor.shape, quantization))


def _write_texts(folder: Path, export: GgufExport) -> None:
    ollama = modelfile(export.file, export.form, export.system, CONTEXT_TOKENS, SAMPLING)
    (folder / "Modelfile").write_text(ollama, encoding="utf-8")
    (folder / "README.md").write_text(readme(export), encoding="utf-8")


def readme(export: GgufExport) -> str:
    """The README.md of the folder: command lines, for a shell in the folder."""
    smaller = quantize_commands(".", export).replace("\n", "\n$ ")
    smaller = f"```console\n$ {smaller}\n```" if smaller.startswith("llama") else f"{smaller[0].upper()}{smaller[1:]}."
    sampling = f"--temp {SAMPLING['temperature']} --top-p {SAMPLING['top_p']} --top-k 0 --min-p 0 --repeat-penalty 1.0"
    system = ", with the role's system prompt unless there is another" if export.system else ""
    return f"""# {export.name}

A ChatGLM2 with a LoRA adapter merged into it, in {export.quantization}, for llama.cpp and what is built on it.
Written by `kyon-pl merge --format gguf`. The licence of the base also applies to this file.

## The whole character

Memories, the asker's name, and whole older turns left out when the context is full, as in training:

```console
$ llama-server -m {export.file} -c {CONTEXT_TOKENS}
$ kyon-pl chat --server http://127.0.0.1:8080 --adapter . --character ROLE_FOLDER
```

## llama.cpp alone

A page and an OpenAI API at http://127.0.0.1:8080, without memories:

```console
$ llama-server -m {export.file} -c {CONTEXT_TOKENS} --jinja {sampling}
```

The file's chat template words a conversation as in training{system}.
A prompt that you write yourself starts with `{PREFIX}`; a blank or a line end behind it changes the reply.

## Ollama

Written from Ollama's documentation and not tested:

```console
$ ollama create {export.name} -f Modelfile
$ ollama run {export.name}
```

## In 4 bits

{smaller}
"""
