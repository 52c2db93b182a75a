"""Whether training on packs with shared beginnings learns as much from the same rows in as many steps.

    python benchmarks/shared_quality.py ROWS.npz --table results.md          one GPU
    python benchmarks/shared_quality.py ROWS.npz --tiny                      a CPU, a small base, two short runs

ROWS.npz has `ids` (all rows, one after the other), `lengths`, `contexts` (leading ids of a row that are not trained)
and `groups` (the character of each row). A base is trained once on a part of the rows as plain text. Each arm then
tunes LoRA adapters on it, with equal rows and equal steps: an epoch of each arm is cut into the same number of
optimizer steps. The loss on held-out rows is taken along the way.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from arm_table import versions
from numpy.typing import NDArray
from peft import LoraConfig

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM, attention, layers
from kyon_pl.data.batches.collate import DialogueCollator, PlannedCollator
from kyon_pl.data.batches.plan import BatchPlanner
from kyon_pl.data.batches.sampler import MicroBatch
from kyon_pl.data.encoding.tree import find_shared
from kyon_pl.lora import attach_lora
from kyon_pl.training.base import compile_layers
from kyon_pl.training.optimizer import LinearDecay

WIDE = {"num_layers": 12, "hidden_size": 1024, "ffn_hidden_size": 2736, "kv_channels": 64, "num_attention_heads": 16}
NARROW = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 96, "kv_channels": 16, "num_attention_heads": 4}
LONGEST = 2048


@dataclass(frozen=True)
class Arm:
    """How rows are batched.

    Attributes:
        name: in the table.
        rows_per_cluster: 0: packed; None: no limit.
        dropout: of LoRA.
        packs_per_step: of 8,192 tokens, if packed.
        sums: dtype in which gradients of shared keys and values are summed.
    """

    name: str
    rows_per_cluster: int | None
    dropout: float = 0.0
    packs_per_step: int = 4
    sums: str = "float32"


ARMS = [
    Arm("packed", 0),
    Arm("shared, 2", 2),
    Arm("shared, 4", 4),
    Arm("shared, 8", 8),
    Arm("shared, no limit", None),
    Arm("packed, dropout", 0, 0.05),
    Arm("shared, 2, dropout", 2, 0.05),
    Arm("shared, 4, dropout", 4, 0.05),
    Arm("shared, 8, dropout", 8, 0.05),
    Arm("shared, no limit, dropout", None, 0.05),
    Arm("shared, 4, bf16 sums", 4, sums="bfloat16"),
    Arm("packed, 16 packs", 0, packs_per_step=16),
    Arm("shared, 4, 16 packs", 4, packs_per_step=16),
]


class Rows:
    """Rows of ids, and some of them as a planner, a collator and a tree see them."""

    def __init__(self, file: Path) -> None:
        arrays = np.load(file)
        self.lengths, self.contexts = arrays["lengths"].astype(np.int64), arrays["contexts"].astype(np.int64)
        self.ids = arrays["ids"].astype(np.int32)
        self.starts = np.cumsum(self.lengths) - self.lengths

    def row(self, number: int) -> dict[str, Any]:
        ids = self.ids[self.starts[number] :][: self.lengths[number]]
        return {"input_ids": ids, "seq_len": int(self.contexts[number]), "masked": []}

    def plain(self, number: int) -> dict[str, Any]:
        """The row with all tokens but the first trained."""
        return self.row(number) | {"seq_len": 1}


def main() -> None:
    """Train the base, then the arms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--table", type=Path, default=Path("shared_quality.md"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--pretrain_steps", type=int, default=400)
    parser.add_argument("--arms", help="names with ; between them")
    parser.add_argument("--limit_s", type=float, default=1e9, help="start no run after this many seconds")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    started_s = time.monotonic()
    device = torch.device("cpu" if options.tiny else "cuda")
    rows = Rows(options.rows)
    rng = np.random.default_rng(7)
    order = rng.permutation(len(rows.lengths))
    held_out, plain, tuned = np.split(order, [len(order) // 15, len(order) // 3])
    if options.tiny:
        held_out, plain, tuned, options.pretrain_steps, options.epochs = held_out[:8], plain[:8], tuned[:40], 2, 1
    base = pretrain(rows, plain, options, device)
    name = "CPU" if options.tiny else torch.cuda.get_device_name()
    tell(options.table, f"\n## {time.strftime('%Y-%m-%d %H:%M')}, {name}\n\n{versions(device)}\n")
    tell(
        options.table,
        f"    {shlex.join(['python', *sys.argv])}\n\n{len(plain)} rows of plain text, {len(tuned)} tuned, {len(held_out)} held out\n",
    )
    wanted = options.arms.split(";") if options.arms else None
    arms = [arm for arm in (ARMS[:3] if options.tiny else ARMS) if wanted is None or arm.name in wanted]
    results: dict[str, list[list[float]]] = {arm.name: [] for arm in arms}
    for seed in range(1 if options.tiny else options.seeds):  # arms inside, so that each seed is whole
        for arm in arms:
            if time.monotonic() - started_s < options.limit_s:
                results[arm.name].append(tune(base, rows, tuned, held_out, arm, seed, options, device))
    report(results, options)


def pretrain(
    rows: Rows, numbers: NDArray[np.int64], options: argparse.Namespace, device: torch.device
) -> ChatGLM2ForCausalLM:
    """Train a base on rows as plain text."""
    torch.manual_seed(0)
    shape = NARROW if options.tiny else WIDE
    config = ChatGLM2Config(**shape, padded_vocab_size=65024)
    config._attn_implementation = "sdpa" if options.tiny else attention.VARLEN
    with device:
        model = ChatGLM2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.98), weight_decay=0.05)
    if not options.tiny:
        compile_layers(model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-4, options.pretrain_steps)
    step = 0
    while step < options.pretrain_steps:
        for batch in epoch_batches(rows, numbers, Arm("", 0), step, rows.plain):
            inputs = to_device(batch, device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=not options.tiny):
                loss = model(**inputs, use_cache=False, skip_logits=True).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            if step == options.pretrain_steps:
                break
    print(f"base: loss {loss.item():.4f} after {step} steps", flush=True)
    return model.requires_grad_(False).to(torch.float32 if options.tiny else torch.bfloat16)


def epoch_batches(rows: Rows, numbers: NDArray[np.int64], arm: Arm, epoch: int, read: Any, seed: int = 0) -> list[Any]:
    """The packs of an epoch."""
    tokens, contexts = rows.lengths[numbers], rows.contexts[numbers]
    shares = arm.rows_per_cluster != 0
    sharing: dict[str, Any] = {}
    if shares:
        sharing = {
            "tree": find_shared(rows.ids, rows.starts[numbers], contexts),
            "rows_per_cluster": arm.rows_per_cluster,
        }
    planner = BatchPlanner(
        row_tokens=tokens,
        row_trained_tokens=tokens - contexts,
        batching="shared" if shares else "packed",
        tokens_per_batch=8192,
        seed=seed,
        **sharing,
    )
    plan, collate = planner.plan_epoch(epoch), PlannedCollator(DialogueCollator(), 8192, LONGEST, shares)
    batches = []
    for index in range(len(plan)):
        chosen = plan.row_numbers(index)
        planned = MicroBatch(chosen, 0, plan.shared_tokens(index))
        batches.append(collate((planned, [read(int(numbers[number])) for number in chosen])))
    return batches


def to_device(batch: Any, device: torch.device) -> dict[str, Any]:
    inputs = batch.model_inputs()
    for name in ("cu_seqlens", "cu_seqlens_k", "key_index", "trained_positions"):
        if name in inputs:
            torch._dynamo.maybe_mark_dynamic(inputs[name], 0)
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    for name in ("cu_seqlens", "cu_seqlens_k", "key_index", "trained_positions"):
        if name in moved:
            torch._dynamo.maybe_mark_dynamic(moved[name], 0)
    return moved


class SumInBfloat16(torch.autograd.Function):
    """`GatherKeys` with sums in the dtype of the gradients."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.count = tokens.shape[0]
        return tokens.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        return gradient.new_zeros((ctx.count, *gradient.shape[1:])).index_add(0, index, gradient), None


def tune(
    base: ChatGLM2ForCausalLM,
    rows: Rows,
    numbers: NDArray[np.int64],
    held_out: NDArray[np.int64],
    arm: Arm,
    seed: int,
    options: argparse.Namespace,
    device: torch.device,
) -> list[float]:
    """Tune an adapter; the held-out losses along the way."""
    started_s = time.monotonic()
    layers.GatherKeys = SumInBfloat16 if arm.sums == "bfloat16" else attention.GatherKeys
    torch._dynamo.reset()
    torch.manual_seed(seed)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=arm.dropout, target_modules=["query_key_value"])
    model = attach_lora(base, lora, "base")
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=0.0)
    packed = epoch_batches(rows, numbers, ARMS[0], 0, rows.row)
    steps_per_epoch = max(1, len(packed) // arm.packs_per_step)
    total = steps_per_epoch * options.epochs
    schedule = LinearDecay(optimizer, total, warmup_steps=total // 20)
    losses, step = [evaluate(model, rows, held_out, device, options.tiny)], 0
    for epoch in range(options.epochs):
        batches = epoch_batches(rows, numbers, arm, epoch, rows.row, seed)
        for part in np.array_split(np.arange(len(batches)), steps_per_epoch):
            count = sum(batches[index].trained_tokens for index in part)
            for index in part:
                inputs = to_device(batches[index], device)
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=not options.tiny):
                    loss = model(**inputs, use_cache=False, skip_logits=True, num_items_in_batch=count).loss
                loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            if step % max(1, total // 6) == 0 or step == total:
                losses.append(evaluate(model, rows, held_out, device, options.tiny))
    base_again = model.unload()
    assert base_again is base
    packs = len(batches)
    print(
        f"{arm.name}, seed {seed}: {packs} packs an epoch, {total} steps, {time.monotonic() - started_s:.0f} s:",
        *(f"{x:.4f}" for x in losses),
        flush=True,
    )
    return losses


def evaluate(model: Any, rows: Rows, held_out: NDArray[np.int64], device: torch.device, tiny: bool) -> float:
    """The mean loss of a trained token of held-out rows."""
    model.eval()
    loss, count = 0.0, 0
    for batch in epoch_batches(rows, held_out, ARMS[0], 0, rows.row):
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=not tiny):
            loss += float(
                model(**to_device(batch, device), use_cache=False, skip_logits=True, num_items_in_batch=1).loss
            )
        count += batch.trained_tokens
    model.train()
    return loss / count


def report(results: dict[str, list[list[float]]], options: argparse.Namespace) -> None:
    """Mean and spread of each arm."""
    lines = [
        "| arm | runs | before | along the way, mean | at the end, each | mean | standard deviation | improvement against packed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    finals = {name: [run[-1] for run in runs] for name, runs in results.items() if runs}
    for name, runs in results.items():
        if not runs:
            lines.append(f"| {name} | not run | | | | | | |")
            continue
        control = "packed" + (", dropout" if "dropout" in name else ", 16 packs" if "16" in name else "")
        before, final = fmean(run[0] for run in runs), fmean(finals[name])
        gained = f"{(before - final) / (before - fmean(finals[control])) - 1:+.2%}" if control in finals else ""
        along = " ".join(f"{fmean(values):.4f}" for values in zip(*runs, strict=True))
        spread = f"{stdev(finals[name]):.4f}" if len(runs) > 1 else ""
        each = " ".join(f"{value:.4f}" for value in finals[name])
        lines.append(f"| {name} | {len(runs)} | {before:.4f} | {along} | {each} | {final:.4f} | {spread} | {gained} |")
    tell(options.table, "\n".join(lines))
    options.table.with_suffix(".json").write_text(json.dumps(results))


def tell(file: Path, text: str) -> None:
    """Append to a Markdown file, and print."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text + "\n")
    print(text, flush=True)


if __name__ == "__main__":
    main()
