"""How fast the 6B's shape replies, on random weights with an adapter: batched, streamed, and as a part of validation.

    python benchmarks/replies.py FOLDER                        everything; `validate` writes 13 GB into FOLDER
    python benchmarks/replies.py FOLDER --parts batch,stream
    python benchmarks/replies.py FOLDER --device cpu --tiny

| part | what is measured |
|---|---|
| `batch` | new tokens a second, 64 prompts at once against one at a time; prompts of the committed lengths |
| `stream` | seconds to the first token, tokens a second after it: chat, and plain `GlmForCausalLM.generate` beside it |
| `validate` | `kyon-pl validate` with and without replies to 200 rows; KYON_CHATGLM2_DIR names the real tokenizer |

No end of sequence is known, so that every reply is as long as it may be.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from arm_names import TINY_SHAPE
from arm_table import versions
from rows import LAST_TEXT_ID, RowShape, write_rows
from transformers import AutoModelForCausalLM, GenerationConfig
from watch import watch

from kyon_pl.chat.loading import LocalModel
from kyon_pl.chat.model import Sampling
from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.chatglm2.checkpoint import random_base
from kyon_pl.chatglm2.generation import generate_replies
from kyon_pl.chatglm2.glm import glm_config, tensor_to_glm
from kyon_pl.chatglm2.tokenization import read_tokenizer
from kyon_pl.demo import BASE
from kyon_pl.lora import attach_lora, reference_lora

ROOT = Path(__file__).parents[1]
NO_END = -1  # no token has this id
FIRST_ID = 259


def main() -> None:
    """Measure the parts, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", default="batch,stream,validate", help="with commas between them")
    parser.add_argument("--table", type=Path, default=Path("replies.md"), help="Markdown file to append to")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape; validate takes the demo's base")
    parser.add_argument("--prompts", type=int, default=64, help="of `batch`, all of them at once")
    parser.add_argument("--singles", type=int, default=8, help="how many of these one at a time")
    parser.add_argument("--new_tokens", type=int, default=128, help="of each reply")
    parser.add_argument("--context", type=int, default=1000, help="tokens of the prompt of `stream`")
    parser.add_argument("--repeats", type=int, default=3, help="replies of `stream`, of which the median counts")
    parser.add_argument("--rows", type=int, default=200, help="that `validate` replies to")
    parser.add_argument("--rows_per_batch", type=int, default=64, help="of `validate`; configs/lora.yaml has fewer")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process of a part does
    options = parser.parse_args()
    if options.one:
        logging.disable(logging.WARNING)  # transformers', about an end of sequence that cannot be
        {"batch": batch, "stream": stream}[options.one](options)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} CPU cores"
    command = " ".join(["python", *sys.argv])
    tell(options, f"\n## {time.strftime('%Y-%m-%d %H:%M')}, {device}\n\n{versions(torch.device(options.device))}\n")
    tell(options, f"\n    {command}\n\n| part | what | |\n|---|---|---|\n")
    for part in options.parts.split(","):
        if part == "validate":
            validate(options)
            continue
        seen = watch([sys.executable, *sys.argv, "--one", part], options.folder / f"{part}.log")
        for line in seen.output.splitlines():
            if line.startswith("SAID "):
                what, _, value = line.removeprefix("SAID ").partition(": ")
                tell(options, f"| {part} | {what} | {value} |\n")


def tell(options: argparse.Namespace, text: str) -> None:
    """Append to the table, and print."""
    with options.table.open("a", encoding="utf-8") as stream:
        stream.write(text)
    print(text, end="", flush=True)


def say(what: str, value: str) -> None:
    """One line of the table."""
    print(f"SAID {what}: {value}", flush=True)


def timed(options: argparse.Namespace, call: Callable[[], Any]) -> float:
    """Seconds of a call, with what it gave the device to do."""
    synchronize(options)
    started_s = time.perf_counter()
    call()
    synchronize(options)
    return time.perf_counter() - started_s


def synchronize(options: argparse.Namespace) -> None:
    """Wait for the device."""
    if options.device == "cuda":
        torch.cuda.synchronize()


def model_of(options: argparse.Namespace) -> Any:
    """The base with a new adapter, as chat has it: the base in half precision, the adapter in float32."""
    config = ChatGLM2Config(**TINY_SHAPE) if options.tiny else ChatGLM2Config()
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    base = random_base(config, dtype=dtype, device=torch.device(options.device), attn_implementation="sdpa")
    return attach_lora(base, reference_lora(), "random").eval()


def prompts_of(options: argparse.Namespace, count: int) -> list[list[int]]:
    """Prompts of the committed lengths."""
    last = TINY_SHAPE["padded_vocab_size"] if options.tiny else LAST_TEXT_ID
    generator = torch.Generator().manual_seed(0)
    lengths = [context for context, _ in RowShape(count, shrink=16 if options.tiny else 1).lengths()]
    return [torch.randint(FIRST_ID, int(last), (length,), generator=generator).tolist() for length in lengths]


def batch(options: argparse.Namespace) -> None:
    """All prompts at once, and some one at a time, evenly spread over their lengths."""
    model, prompts = model_of(options), prompts_of(options, options.prompts)
    some = sorted(prompts, key=len)[:: max(1, len(prompts) // options.singles)][: options.singles]

    def rate(asked: list[list[int]], batch_size: int) -> float:
        seconds = timed(options, lambda: reply(asked, batch_size, options.new_tokens))
        return len(asked) * options.new_tokens / seconds

    def reply(asked: list[list[int]], batch_size: int, new_tokens: int) -> None:
        said = generate_replies(
            model, asked, max_new_tokens=new_tokens, eos_token_id=NO_END, pad_token_id=0, batch_size=batch_size
        )
        assert all(len(one.token_ids) == new_tokens for one in said)

    reply(some[:1], 1, 4)
    reply(prompts, len(prompts), 4)
    together, single = rate(prompts, len(prompts)), rate(some, 1)
    lengths = sorted(map(len, prompts))
    say("prompts", f"{len(prompts)} of {lengths[0]} to {lengths[-1]} tokens, {options.new_tokens} new ones each")
    say(f"{len(prompts)} at once, new tokens/s", f"{together:,.0f}")
    say("one at a time, new tokens/s", f"{single:,.1f}")
    say("times as many", f"{together / single:.1f}")
    if options.device == "cuda":
        say("peak allocated, GiB", f"{torch.cuda.max_memory_allocated() / 2**30:.1f}")


class Decoder:
    """A tokenizer for any id: those that it does not know are taken for others. It tells when it is first asked."""

    eos_token_id = NO_END

    def __init__(self) -> None:
        real = os.environ.get("KYON_CHATGLM2_DIR")
        self.tokenizer = read_tokenizer(Path(real) if real else BASE)
        self.size = self.tokenizer.vocab_size
        self.first_s = 0.0

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Their text."""
        self.first_s = self.first_s or time.perf_counter()
        ids = [token % self.size for token in token_ids]
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


def stream(options: argparse.Namespace) -> None:
    """Chat's way to a reply, and transformers' GLM with the same weights."""
    model = model_of(options)
    config = model.get_base_model().config
    prompt = torch.randint(
        FIRST_ID, config.padded_vocab_size - 300, (options.context,), generator=torch.Generator().manual_seed(1)
    ).tolist()
    glm = glm_of(model.get_base_model(), options)
    ours: dict[str, list[tuple[float, float]]] = {"chat, base and adapter": [], "chat, base alone": []}
    plain: list[tuple[float, float]] = []
    chat(options, model, prompt, True, 4)
    generate(options, glm, prompt, 4)
    for _ in range(options.repeats):  # in turns, so that a change of clocks meets all of them
        ours["chat, base and adapter"].append(chat(options, model, prompt, True, options.new_tokens))
        ours["chat, base alone"].append(chat(options, model, prompt, False, options.new_tokens))
        first_s = generate(options, glm, prompt, 1)
        plain.append((first_s, generate(options, glm, prompt, options.new_tokens)))
    new = options.new_tokens
    say("prompt", f"{len(prompt)} tokens, {new} new ones")
    found = ours | {"GlmForCausalLM.generate": plain}
    whole = {name: statistics.median(seconds for _, seconds in times) for name, times in found.items()}
    for name, times in found.items():
        first_s = statistics.median(first for first, _ in times)
        after = (new - 1) / (whole[name] - first_s)
        say(name, f"first token after {first_s * 1000:.0f} ms, {new / whole[name]:.1f} tokens/s, {after:.1f} after it")
    for name in ours:
        say(f"{name}, tokens/s over GlmForCausalLM.generate", f"{whole['GlmForCausalLM.generate'] / whole[name]:.2f}")


def chat(
    options: argparse.Namespace, model: Any, prompt: list[int], adapter: bool, new_tokens: int
) -> tuple[float, float]:
    """Seconds to the first token that is told, and to the end."""
    decoder = Decoder()
    speaker = LocalModel(decoder, "random", "raw", "last", ("random",), model=model, peft_names={"random": "default"})
    synchronize(options)
    started_s = time.perf_counter()
    speaker.reply(prompt, Sampling(max_new_tokens=new_tokens), adapter="random" if adapter else None)
    synchronize(options)
    return decoder.first_s - started_s, time.perf_counter() - started_s


def glm_of(base: Any, options: argparse.Namespace) -> Any:
    """transformers' own model with the same weights."""
    with torch.device(options.device):
        glm = AutoModelForCausalLM.from_config(glm_config(base.config), dtype=base.dtype, attn_implementation="sdpa")
    state = {name.replace(".base_layer", ""): tensor for name, tensor in base.state_dict().items()}
    theirs: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if ".lora_" not in name:
            theirs |= tensor_to_glm(name, tensor, base.config)
    glm.load_state_dict(theirs)
    return glm.eval()


def generate(options: argparse.Namespace, glm: Any, prompt: list[int], new_tokens: int) -> float:
    """Seconds of a plain generate."""
    ids = torch.tensor([prompt], device=glm.device)
    settings = GenerationConfig(max_new_tokens=new_tokens, eos_token_id=NO_END, pad_token_id=0)
    with torch.inference_mode():
        return timed(
            options, lambda: glm.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        )


def validate(options: argparse.Namespace) -> None:
    """The same command with and without replies."""
    folder: Path = options.folder
    write_rows(
        folder / "rows.jsonl",
        RowShape(options.rows, max_tokens=512, vocabulary=1024) if options.tiny else RowShape(options.rows),
    )
    base = "demo" if options.tiny else str(folder / "base")
    if not options.tiny and not Path(base).is_dir():
        if "KYON_CHATGLM2_DIR" not in os.environ:
            sys.exit("validate: KYON_CHATGLM2_DIR has to name a folder with the real tokenizer, for ids of the 6B")
        words = [str(folder), "--phases", "write", "--device", options.device, "--table", str(folder / "write.md")]
        subprocess.run([sys.executable, str(ROOT / "benchmarks/published_6b.py"), *words], check=True)
    settings: dict[str, object] = {
        "model.base": base,
        "data.source": folder / "rows.jsonl",
        "data.validation_source": folder / "rows.jsonl",
        "data.cache_dir": folder / "encoded",
        "trainer.default_root_dir": folder / "runs",
        "trainer.accelerator": "gpu" if options.device == "cuda" else "cpu",
        "trainer.precision": "bf16-mixed" if options.device == "cuda" else "32-true",
    }
    replies: dict[str, object] = {
        "held_out.validate_rows": options.rows,
        "held_out.rows_per_batch": options.rows_per_batch,
        "held_out.max_new_tokens": options.new_tokens,
    }
    found: dict[str, float] = {}
    for name, held_out in (("without replies", {"held_out": "null"}), (f"{options.rows} replies", replies)):
        words = [word for key, value in (settings | held_out).items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "kyon_pl", "validate", "--config", str(ROOT / "configs/lora.yaml"), *words]
        found[name] = watch(command, folder / "validate.log").seconds
        tell(options, f"| validate | {name}, whole command | {found[name]:.0f} s |\n")
    without, with_replies = found.values()
    what = f"{options.rows} replies of {options.new_tokens} tokens, and as many of the base"
    what += f", {options.rows_per_batch} at once"
    tell(options, f"| validate | {what} | {with_replies - without:.0f} s |\n")
    shutil.rmtree(folder / "runs", ignore_errors=True)


if __name__ == "__main__":
    main()
