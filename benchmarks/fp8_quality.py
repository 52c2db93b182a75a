"""Whether a LoRA trained over an fp8 base is worth as much as one trained over a bf16 base.

    python benchmarks/fp8_quality.py FOLDER --table results.md        one GPU with fp8 units, about two minutes
    python benchmarks/fp8_quality.py FOLDER --tiny                    a CPU: a small base, bf16 in fp8's place

A base of some 150 M parameters first reads the demo's little world; then it is tuned on the demo's characters over bf16
and over fp8 with the same seed, and the second adapter is validated on the bf16 base too. A third run, over bf16 with
another seed, says how far apart two runs are that are worth the same.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from arm_table import versions

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import BASE
from kyon_pl.demo.corpus import SEED
from kyon_pl.demo.make_base import SHAPE, WARMUP_STEPS, batches, perplexity

ROOT = Path(__file__).parents[1]
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "generation_config.json")
# every dimension is a multiple of 16, as fp8 products want it
WIDE = {"num_layers": 12, "hidden_size": 1024, "ffn_hidden_size": 2736, "kv_channels": 128, "num_attention_heads": 8}
NARROW = {"num_layers": 2, "hidden_size": 128, "ffn_hidden_size": 352, "kv_channels": 32, "num_attention_heads": 4}
TARGET = 0.01  # the largest relative difference of the final losses that is called the same
RUN = Path("lightning_logs/version_0")  # in the folder of a run
YES = {True: "yes", False: "NO"}
SHOWN_LINES = 12  # of what a command said that failed


def main() -> None:
    """Make the base, tune it, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the base, the runs and what they say; a new one")
    parser.add_argument("--table", type=Path, default=Path("fp8_quality.md"), help="Markdown file to append to")
    parser.add_argument("--pretrain_s", type=float, help="seconds to train the base; unset: 45, tiny: 10")
    parser.add_argument("--steps", type=int, help="optimizer steps of each run; unset: 100, tiny: 20")
    parser.add_argument("--validate_every", type=int, help="steps between two validations; unset: 10, tiny: 5")
    parser.add_argument("--lr", type=float, default=2e-3, help="the peak; that of the demo is for a narrower model")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, a small base, bf16 in both places")
    options = parser.parse_args()
    tiny, folder = options.tiny, options.folder
    options.pretrain_s = options.pretrain_s or (10 if tiny else 45)
    options.steps = options.steps or (20 if tiny else 100)
    options.validate_every = options.validate_every or (5 if tiny else 10)
    if folder.exists():
        parser.error(f"{folder} is there already: name a new folder")
    if options.steps % options.validate_every:
        parser.error("--steps has to be a multiple of --validate_every, for a validation after the last step")
    device = torch.device("cpu" if tiny else "cuda")
    name = "CPU" if tiny else torch.cuda.get_device_name()
    command = shlex.join(["python", *sys.argv])
    tell(options.table, f"\n## {time.strftime('%Y-%m-%d %H:%M')}, {name}\n\n{versions(device)}\n\n    {command}\n")
    tell(options.table, make_base(folder / "base", NARROW if tiny else WIDE, options.pretrain_s, device))
    curves = {}
    for name, quantization, seed in (("bf16", "null", 1), ("fp8", "null" if tiny else "fp8", 1), ("seed-2", "null", 2)):
        settings = fit_settings(options) | {"model.quantization": quantization, "seed_everything": seed}
        curves[name] = read_curve(run("fit", folder / name, settings))
    checkpoint = folder / "fp8" / RUN / "checkpoints" / f"step={options.steps}.ckpt"
    wanted = common_settings(options) | {"model.quantization": "null", "ckpt_path": checkpoint}
    moved = read_curve(run("validate", folder / "fp8-on-bf16", wanted))
    tell(options.table, compare(*curves.values(), *moved.values()))


def make_base(folder: Path, shape: dict[str, Any], seconds: float, device: torch.device) -> str:
    """Train a base on plain speech for so long, write it in the published layout; what it is, in words."""
    torch.manual_seed(SEED)
    tokenizer = ChatGLMTokenizer.from_pretrained(BASE)
    with device:
        model = ChatGLM2ForCausalLM(ChatGLM2Config(**SHAPE | shape | {"torch_dtype": "bfloat16"}))
    peak = 6e-4 * (1024 / shape["hidden_size"]) ** 0.5
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    started_s, steps, tokens = time.monotonic(), 0, 0
    for input_ids, labels in batches(tokenizer, SEED):
        left = 1 - (time.monotonic() - started_s) / seconds
        if left <= 0:
            break
        optimizer.param_groups[0]["lr"] = peak * min((steps + 1) / WARMUP_STEPS, left)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(input_ids.to(device), labels=labels.to(device), skip_logits=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps, tokens = steps + 1, tokens + input_ids.numel()
        if steps % 10 == 0 and device.type == "cuda":
            torch.cuda.synchronize()  # or the clock would stop while hundreds of steps are still queued
    model.bfloat16().save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(BASE / name, folder / name)
    others = ((ids.to(device), labels.to(device)) for ids, labels in batches(tokenizer, SEED + 1))
    other = perplexity(model, others, count=2)
    return (
        f"Base: {model.num_parameters() / 1e6:.1f} M parameters, {steps} steps of AdamW on {tokens / 1e6:.2f} M tokens "
        f"(padding counted) in {seconds:.0f} s; perplexity of other plain text {other:.3f}."
    )


def common_settings(options: argparse.Namespace) -> dict[str, object]:
    """What fit and validate share."""
    return {
        "trainer.accelerator": "cpu" if options.tiny else "gpu",
        "trainer.precision": "bf16-mixed",
        "trainer.enable_progress_bar": "false",
        "model.base": options.folder / "base",
        "model.lora.lora_dropout": 0.0,
        "data.tokens_per_batch": 1024 if options.tiny else 8192,
        "data.cache_dir": options.folder / "encoded",
        "held_out": "null",
    }


def fit_settings(options: argparse.Namespace) -> dict[str, object]:
    """What both runs share."""
    return common_settings(options) | {
        "auto_resume": "false",
        "trainer.max_epochs": -1,
        "trainer.max_steps": options.steps,
        "trainer.accumulate_grad_batches": 1,
        "trainer.check_val_every_n_epoch": "null",  # by steps alone
        "trainer.val_check_interval": options.validate_every,
        "model.optimizer.init_args.lr": options.lr,
    }


def run(command: str, folder: Path, settings: dict[str, object]) -> Path:
    """A command of the package in a process of its own.

    Args:
        command: `fit` or `validate`.
        folder: for its logs and what it says.
        settings: on top of the demo's.

    Returns:
        The file with its metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--config", str(ROOT / "configs" / "demo.yaml"), "--trainer.default_root_dir", str(folder)]
    words += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    words += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    log, started_s = folder / "said.log", time.monotonic()
    with log.open("w") as stream:
        words = [sys.executable, "-m", "kyon_pl", command, *words]
        status = subprocess.run(words, stdout=stream, stderr=subprocess.STDOUT, env=environment).returncode
    if status:
        lines = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        sys.exit("\n".join([f"kyon-pl {command} for {folder.name}: status {status}", *lines]))
    print(f"{folder.name}: {time.monotonic() - started_s:.0f} s", flush=True)
    return folder / RUN / "metrics.csv"


def read_curve(metrics: Path) -> dict[int, float]:
    """`val/loss` by the number of optimizer steps before it."""
    with metrics.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("val/loss")]
    return {int(row["step"]): float(row["val/loss"]) for row in rows}


def compare(bf16: dict[int, float], fp8: dict[int, float], other: dict[int, float], moved: float) -> str:
    """What came out, as Markdown."""
    before, (wanted, found) = bf16[0], (list(curve.values())[-1] for curve in (bf16, fp8))
    trained, alike, moves = wanted <= before / 2, abs(found / wanted - 1), abs(moved / wanted - 1)
    lines = [
        "\n| val/loss | value | over bf16's final |\n|---|---|---|",
        f"| before the first step, bf16 base | {before:.4f} | |",
        f"| before the first step, fp8 base | {fp8[0]:.4f} | |",
        f"| bf16, final | {wanted:.4f} | |",
        f"| fp8, final, as trained | {found:.4f} | {found / wanted - 1:+.2%} |",
        f"| fp8's adapter on the bf16 base | {moved:.4f} | {moved / wanted - 1:+.2%} |",
        f"\nbf16's final is at most half of before: {YES[trained]} ({wanted / before:.1%}).",
        f"fp8 within {TARGET:.0%}, as trained: {YES[alike <= TARGET]}; its adapter on bf16: {YES[moves <= TARGET]}.",
        "\n| step | bf16 | fp8 | | bf16, another seed | |\n|---|---|---|---|---|---|",
    ]
    for step, a in bf16.items():
        beside = (f"{curve[step]:.4f} | {curve[step] / a - 1:+.2%}" for curve in (fp8, other))
        lines.append(f"| {step} | {a:.4f} | {' | '.join(beside)} |")
    return "\n".join(lines)


def tell(file: Path, text: str) -> None:
    """Append to a Markdown file, and print."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text + "\n")
    print("\n".join(f"RESULT {line}" for line in text.splitlines() if line), flush=True)


if __name__ == "__main__":
    main()
