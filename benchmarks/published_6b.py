"""From a checkpoint in the published layout to merged models, at the 6B's shape: time and host memory of each phase.

    python benchmarks/published_6b.py FOLDER                         everything, on the GPU
    python benchmarks/published_6b.py FOLDER --device cpu --phases write,adapter,chatglm,glm        merges alone

FOLDER needs 13 GB for the base and 13 more for one merged model at a time. Weights are random. Phases:

| | |
|---|---|
| `write` | the base: 7 pickled shards in float16 with their index, config.json with auto_map, tokenizer |
| `fit` | `kyon-pl fit` from it, 5 optimizer steps of the reference run, and its adapter |
| `adapter` | a random adapter in place of `fit` |
| `live` | base and adapter loaded, logits of a few ids kept |
| `chatglm`, `glm` | `kyon-pl merge` into this format; the folder loaded again, compared with `live`, and removed |
| `f16`, `q8_0` | `kyon-pl merge --format gguf` in this quantization; llama.cpp loads it and adds a token; removed |
| `clean` | FOLDER is removed |
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from arm_table import versions
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from rows import RowShape, write_rows
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from watch import watch

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM
from kyon_pl.chatglm2.checkpoint import load_base
from kyon_pl.chatglm2.configuration import read_config
from kyon_pl.chatglm2.files import INV_FREQ
from kyon_pl.demo import BASE
from kyon_pl.lora import reference_lora
from kyon_pl.lora.adapter import load_adapter
from kyon_pl.runs.adapters import find_adapter

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from llama_cpp import LlamaServer  # noqa: E402
from published_layout import REMOTE_CODE, published_config  # noqa: E402

SHARDS, STEPS = 7, 5
PHASES = ("write", "fit", "live", "chatglm", "glm", "clean")
TINY = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 96, "kv_channels": 16, "num_attention_heads": 4}
BLOCK = 16_777_213  # random numbers that are used over and over; a prime, so that no two rows of a weight are alike
IDS = [[64_790, 64_792, *range(1000, 64_000, 3000)]]


def main() -> None:
    """Run phases, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--phases", default=",".join(PHASES), help="with commas between them")
    parser.add_argument("--table", type=Path, default=Path("published_6b.md"), help="Markdown file to append to")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="two layers of 64 channels")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process of a phase does
    options = parser.parse_args()
    if options.one:
        step, *words = options.one.split(":")
        {"write": write_base, "adapter": write_adapter, "load": load, "answer": answer}[step](options, *words)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} CPU cores"
    command = " ".join(["python", *sys.argv])
    tell(options, f"\n## {time.strftime('%Y-%m-%d %H:%M')}, {device}\n\n{versions(torch.device(options.device))}\n")
    tell(
        options, f"\n    {command}\n\n| what | seconds | peak RssAnon, GiB | peak RSS, GiB | |\n|---|---|---|---|---|\n"
    )
    for phase in options.phases.split(","):
        run_phase(phase, options)


def tell(options: argparse.Namespace, text: str) -> None:
    """Append to the table, and print."""
    with options.table.open("a", encoding="utf-8") as stream:
        stream.write(text)
    print(text, end="", flush=True)


def run_phase(phase: str, options: argparse.Namespace) -> None:
    """Run one, with everything that belongs to it."""
    folder: Path = options.folder
    own = [sys.executable, __file__, str(folder), "--device", options.device, *(["--tiny"] if options.tiny else [])]
    cli = [sys.executable, "-m", "kyon_pl"]
    if phase in ("write", "adapter"):
        report(phase, [*own, "--one", phase], options)
    elif phase == "fit":
        report("fit", [*cli, *fit_words(options)], options)
    elif phase == "live":
        report("load base and adapter", [*own, "--one", "load:base"], options)
    elif phase in ("chatglm", "glm"):
        words = ["--adapter", str(adapter_of(folder)), "--output", str(folder / phase), "--format", phase]
        report(f"merge --format {phase}", [*cli, "merge", *words, "--base", str(folder / "base")], options)
        report(f"load the {phase} folder", [*own, "--one", f"load:{phase}"], options)
        shutil.rmtree(folder / phase)
    elif phase in ("f16", "q8_0"):
        words = ["--adapter", str(adapter_of(folder)), "--output", str(folder / phase), "--quantization", phase]
        words += ["--format", "gguf", "--base", str(folder / "base")]
        report(f"merge --format gguf --quantization {phase}", [*cli, "merge", *words], options)
        report("one token of llama.cpp", [*own, "--one", f"answer:{phase}"], options)
        shutil.rmtree(folder / phase)
    elif phase == "clean":
        shutil.rmtree(folder)
    else:
        sys.exit(f"there is no phase {phase!r}: {__doc__}")


def report(name: str, words: list[str], options: argparse.Namespace) -> None:
    """Run a command and add its line; what it says after SAID is the last cell, and how fast the base was loaded."""
    try:
        seen = watch(words, options.folder / "log.txt")
    except RuntimeError as error:
        tell(options, f"| {name} | failed | | | |\n")
        sys.exit(str(error))
    said = re.findall(r"^SAID (.*)$|(logits differ by \S+)$", seen.output, re.MULTILINE)[-1:]
    sizes = f"{seen.private_gib:.2f} | {seen.resident_gib:.2f}"
    tell(options, f"| {name} | {seen.seconds:.0f} | {sizes} | {''.join(said[0]) if said else ''} |\n")


def fit_words(options: argparse.Namespace) -> list[str]:
    """`kyon-pl fit`, as the reference run has it, for a few steps."""
    folder: Path = options.folder
    write_rows(folder / "rows.jsonl", RowShape(400))
    settings: dict[str, object] = {
        "model.base": folder / "base",
        "data.source": folder / "rows.jsonl",
        "data.cache_dir": folder / "encoded",
        "trainer.max_steps": STEPS,
        "trainer.log_every_n_steps": 1,
        "trainer.limit_val_batches": 2,
        "trainer.accelerator": "gpu" if options.device == "cuda" else "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": folder / "runs",
        "auto_resume": "false",
        "held_out": "null",
    }
    if options.device == "cpu":
        settings["trainer.precision"] = "32-true"
    if options.tiny:
        settings |= {"data.max_tokens": 256, "data.tokens_per_step": 4096, "data.workers": 0, "data.processes": 1}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return ["fit", "--config", str(ROOT / "configs/lora.yaml"), *words]


def adapter_of(folder: Path) -> Path:
    """What `fit` or `adapter` left."""
    made = folder / "adapter"
    return made if made.is_dir() else find_adapter(str(folder / "runs/lightning_logs"), "last")


def config_of(options: argparse.Namespace) -> ChatGLM2Config:
    """The shape; the vocabulary is the 6B's."""
    return ChatGLM2Config(**TINY) if options.tiny else ChatGLM2Config()


def write_base(options: argparse.Namespace) -> None:
    """Write the base; one shard is in memory at a time."""
    folder, config = options.folder / "base", config_of(options)
    folder.mkdir()
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ChatGLM2ForCausalLM(config).state_dict().items()}
    shapes[INV_FREQ] = torch.Size([config.kv_channels // 4])
    names, weight_map = sorted(shapes), {}
    block = torch.empty(BLOCK).normal_(std=0.02, generator=torch.Generator().manual_seed(0)).half()
    for number in range(SHARDS):
        file = f"pytorch_model-{number + 1:05d}-of-{SHARDS:05d}.bin"
        held = names[number * len(names) // SHARDS : (number + 1) * len(names) // SHARDS]
        torch.save({name: random_weight(name, shapes[name], block) for name in held}, folder / file)
        weight_map |= dict.fromkeys(held, file)
    total_bytes = 2 * sum(shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(published_config(config)))
    for name in REMOTE_CODE:
        (folder / name).write_text("raise RuntimeError('remote code was run')\n")
    real = os.environ.get("KYON_CHATGLM2_DIR")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile((Path(real) if real else BASE) / name, folder / name)
    print(f"SAID {total_bytes / 1e9:.2f} GB in {SHARDS} shards, {'the real' if real else 'a small'} tokenizer")


def random_weight(name: str, shape: torch.Size, block: Tensor) -> Tensor:
    """A weight in float16: norms of one, everything else normal, from another place of the block for each name."""
    if "layernorm" in name:
        return torch.ones(shape, dtype=torch.float16)
    start = sum(name.encode()) * 7919 % BLOCK
    repeats = -(-(start + shape.numel()) // BLOCK)
    return block.repeat(repeats)[start : start + shape.numel()].clone().view(shape)


def write_adapter(options: argparse.Namespace) -> None:
    """The reference run's kind of adapter, of random tensors."""
    folder, settings = options.folder / "adapter", reference_lora()
    with torch.device("meta"):
        model = get_peft_model(ChatGLM2ForCausalLM(config_of(options)), settings)
    generator = torch.Generator().manual_seed(1)
    shapes = {name: t.shape for name, t in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    assert isinstance(settings, LoraConfig)
    settings.base_model_name_or_path = str(options.folder / "base")
    settings.save_pretrained(str(folder))
    tensors = {name: torch.empty(shape).normal_(std=0.02, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    print(f"SAID {sum(tensor.numel() for tensor in tensors.values()):,} random parameters")


def load(options: argparse.Namespace, what: str) -> None:
    """Load a folder, and keep logits of a few ids, or compare them with those that were kept."""
    device = torch.device(options.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    folder, kept, started_s = options.folder / what, options.folder / "logits.pt", time.monotonic()
    if what == "base":
        base = load_base(folder, dtype=dtype, device=device, attn_implementation="sdpa")
        model: Any = load_adapter(base, adapter_of(options.folder), str(folder)).eval()
    else:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, attn_implementation="sdpa", local_files_only=True
        ).eval()
    if device.type == "cuda":
        torch.cuda.synchronize()
    said = f"{time.monotonic() - started_s:.1f} s to load {type(model).__name__}"
    limit = read_config(options.folder / "base").padded_vocab_size
    with torch.inference_mode():
        ids = torch.tensor(IDS, device=device) % limit
        logits = model(input_ids=ids, use_cache=False).logits.double().cpu()
    if what == "base":
        torch.save(logits, kept)
    elif kept.is_file():
        live = torch.load(kept, weights_only=True)
        relative, alike = (
            float((logits - live).norm() / live.norm()),
            bool((logits.argmax(-1) == live.argmax(-1)).all()),
        )
        said += f"; logits differ from live by {relative:.1e}, {'the same' if alike else 'not the same'} likeliest ids"
    print(f"SAID {said}; norm of logits {float(logits.norm()):.1f}")


def answer(options: argparse.Namespace, what: str) -> None:
    """Have llama.cpp load a GGUF and add a token to a few ids."""
    (file,) = (options.folder / what).glob("*.gguf")
    started_s = time.monotonic()
    with LlamaServer(file, context=256) as server:
        loaded_s = time.monotonic() - started_s
        token = server.ask("/completion", prompt=IDS[0], n_predict=1, temperature=0, return_tokens=True)["tokens"]
    seconds = time.monotonic() - started_s - loaded_s
    print(f"SAID {file.stat().st_size / 1e9:.2f} GB; {loaded_s:.1f} s to load, {seconds:.1f} s to token {token}")


if __name__ == "__main__":
    main()
