"""Whether a LoRA trained over an fp8 base is worth as much as one trained over a bf16 base.

    python benchmarks/fp8_quality.py FOLDER --table results.md        one GPU with fp8 units, some minutes
    python benchmarks/fp8_quality.py FOLDER --tiny                    a CPU: a small base, bf16 in fp8's place

A base of some 150 M parameters first reads the demo's little world; then it is tuned on the demo's characters over bf16
and over fp8 with the same seed, and the second adapter is validated on the bf16 base too; and all that once for each of
several seeds. Two runs over bf16 with unlike seeds are further apart than one percent, so that a single pair says
little: the means over the seeds are compared, and how far apart the seeds of bf16 are stands beside them.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from arm_table import versions

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import BASE
from kyon_pl.demo.corpus import SEED
from kyon_pl.demo.make_assets import SHAPE, WARMUP_STEPS, batches, perplexity

ROOT = Path(__file__).parents[1]
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "generation_config.json")
# every dimension is a multiple of 16, as fp8 products want it
WIDE = {"num_layers": 12, "hidden_size": 1024, "ffn_hidden_size": 2736, "kv_channels": 128, "num_attention_heads": 8}
NARROW = {"num_layers": 2, "hidden_size": 128, "ffn_hidden_size": 352, "kv_channels": 32, "num_attention_heads": 4}
TARGET = 0.01  # the largest relative difference of losses that is called the same
RUN = Path("lightning_logs/version_0")  # in the folder of a run
Curve = dict[int, float]  # val/loss by the number of optimizer steps before it
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
    parser.add_argument("--lr", type=float, default=1e-3, help="the peak; that of the demo is for a narrower model")
    parser.add_argument("--seeds", type=int, help="pairs of runs; unset: 4, tiny: 2")
    parser.add_argument("--at_once", type=int, default=1, help="runs that share the device")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, a small base, bf16 in both places")
    options = parser.parse_args()
    tiny, folder = options.tiny, options.folder
    options.pretrain_s = options.pretrain_s or (10 if tiny else 45)
    options.steps = options.steps or (20 if tiny else 100)
    options.validate_every = options.validate_every or (5 if tiny else 10)
    options.seeds = options.seeds or (2 if tiny else 4)
    if folder.exists():
        parser.error(f"{folder} is there already: name a new folder")
    if options.steps % options.validate_every:
        parser.error("--steps has to be a multiple of --validate_every, for a validation after the last step")
    device = torch.device("cpu" if tiny else "cuda")
    name = "CPU" if tiny else torch.cuda.get_device_name()
    command = shlex.join(["python", *sys.argv])
    tell(options.table, f"\n## {time.strftime('%Y-%m-%d %H:%M')}, {name}\n\n{versions(device)}\n\n    {command}\n")
    tell(options.table, make_base(folder / "base", NARROW if tiny else WIDE, options.pretrain_s, device))
    with ThreadPoolExecutor(options.at_once) as pool:
        pairs = list(pool.map(lambda seed: tune(seed, options), range(1, options.seeds + 1)))
    tell(options.table, compare(*zip(*pairs, strict=True)))


def tune(seed: int, options: argparse.Namespace) -> tuple[Curve, Curve, float]:
    """Train over bf16 and over fp8 with one seed: both curves, and the second adapter's loss on the bf16 base."""
    curves = []
    for name, quantization in (("bf16", "null"), ("fp8", "null" if options.tiny else "fp8")):
        settings = fit_settings(options) | {"model.quantization": quantization, "seed_everything": seed}
        curves.append(read_curve(run("fit", options.folder / f"{name}-{seed}", settings)))
    checkpoint = options.folder / f"fp8-{seed}" / RUN / "checkpoints" / f"step={options.steps}.ckpt"
    wanted = common_settings(options) | {"model.quantization": "null", "ckpt_path": checkpoint}
    (moved,) = read_curve(run("validate", options.folder / f"fp8-{seed}-on-bf16", wanted)).values()
    return curves[0], curves[1], moved


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
    """What all runs of fit share."""
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


def read_curve(metrics: Path) -> Curve:
    """From the file of Lightning's CSV logger."""
    with metrics.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("val/loss")]
    return {int(row["step"]): float(row["val/loss"]) for row in rows}


def compare(bf16: tuple[Curve, ...], fp8: tuple[Curve, ...], moved: tuple[float, ...]) -> str:
    """What came out, as Markdown; a curve and a loss for each seed."""
    wanted = [list(curve.values())[-1] for curve in bf16]
    found = [list(curve.values())[-1] for curve in fp8]
    lines = ["\n| final val/loss | bf16 | fp8, as trained | | fp8's adapter on bf16 | |\n|---|---|---|---|---|---|"]
    rows = [(f"seed {seed}", *losses) for seed, losses in enumerate(zip(wanted, found, moved, strict=True), start=1)]
    rows.append(("**mean**", fmean(wanted), fmean(found), fmean(moved)))
    for name, a, b, c in rows:
        lines.append(f"| {name} | {a:.4f} | {b:.4f} | {b / a - 1:+.2%} | {c:.4f} | {c / a - 1:+.2%} |")
    lines.append("\n| step | bf16, mean | fp8, mean | | each pair | seeds of bf16, lowest to highest |")
    lines.append("|---|---|---|---|---|---|")
    apart = []
    for step in bf16[0]:
        seeds = [curve[step] for curve in bf16]
        pairs = ", ".join(f"{b[step] / a[step] - 1:+.2%}" for a, b in zip(bf16, fp8, strict=True))
        a, b = fmean(seeds), fmean(curve[step] for curve in fp8)
        apart.append(abs(b / a - 1))
        lines.append(
            f"| {step} | {a:.4f} | {b:.4f} | {b / a - 1:+.2%} | {pairs} | {(max(seeds) - min(seeds)) / a:.2%} |"
        )
    before = fmean(curve[0] for curve in bf16)
    halved, moves = fmean(wanted) <= before / 2, abs(fmean(moved) / fmean(wanted) - 1)
    lines.append(
        f"\nbf16 at most half of before: {YES[halved]} ({fmean(wanted) / before:.1%}). Means within {TARGET:.0%}:"
    )
    lines.append(
        f"final {YES[apart[-1] <= TARGET]}, whole curve {YES[max(apart) <= TARGET]}, fp8's adapter on the bf16 base "
        f"{YES[moves <= TARGET]}."
    )
    return "\n".join(lines)


def tell(file: Path, text: str) -> None:
    """Append to a Markdown file, and print."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text + "\n")
    print("\n".join(f"RESULT {line}" for line in text.splitlines() if line), flush=True)


if __name__ == "__main__":
    main()
