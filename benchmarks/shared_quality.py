"""Whether training on packs with shared beginnings learns as much from the same rows in as many steps.

    python benchmarks/shared_quality.py ROWS.npz --table results.md          one GPU
    python benchmarks/shared_quality.py ROWS.npz --tiny                      a CPU, a small base, two short runs
    python benchmarks/shared_quality.py ROWS.npz --base base.pt --quantization fp8     on a base that is kept

ROWS.npz has `ids` (all rows, one after the other), `lengths`, `contexts` (leading ids of a row that are not trained)
and `groups` (the character of each row). A base is trained once on a part of the rows as plain text. Each arm then
tunes LoRA adapters on it, with equal rows and equal steps: an epoch of each arm is cut into the same number of
optimizer steps. The loss on held-out rows, as plain packs, is taken along the way. Arms with the same seed begin with
the same adapter. Table and JSON are written again after every run; seeds are whole rounds of all arms, so that arms
have equally many runs, give or take one, whenever time runs out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from arm_table import versions
from numpy.typing import NDArray
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM, attention, layers
from kyon_pl.chatglm2.checkpoint import random_base
from kyon_pl.data.batches.collate import DialogueCollator, PlannedCollator
from kyon_pl.data.batches.plan import BatchPlanner
from kyon_pl.data.batches.sampler import MicroBatch
from kyon_pl.data.encoding.tree import SharedTree, find_shared
from kyon_pl.lora import attach_lora, quantizer
from kyon_pl.training.optimizer import LinearDecay

WIDE = {"num_layers": 12, "hidden_size": 1024, "ffn_hidden_size": 2736, "kv_channels": 64, "num_attention_heads": 16}
NARROW = {"num_layers": 3, "hidden_size": 64, "ffn_hidden_size": 96, "kv_channels": 16, "num_attention_heads": 4}
LONGEST = 2048
MEASURED_AT = (1 / 3, 2 / 3, 1)  # parts of the optimizer steps
SIZES_VARY = ("cu_seqlens", "cu_seqlens_k", "key_index", "trained_positions")
Packs = list[tuple[dict[str, Any], int]]
"""The arguments of the model for each pack, and its number of trained tokens."""


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
    """Rows of ids.

    Args:
        file: the .npz.
        tokens: of a pack.
    """

    def __init__(self, file: Path, tokens: int) -> None:
        arrays = np.load(file)
        self.lengths, self.contexts = arrays["lengths"].astype(np.int64), arrays["contexts"].astype(np.int64)
        self.ids = arrays["ids"].astype(np.int32)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.tokens = tokens


class Part:
    """Some of the rows.

    Args:
        rows: all of them.
        numbers: of these.
        plain: train all tokens but the first, not only those after the context.
    """

    def __init__(self, rows: Rows, numbers: NDArray[np.int64], *, plain: bool = False) -> None:
        self.rows, self.numbers, self.plain = rows, numbers, plain

    @cached_property
    def tree(self) -> SharedTree:
        """What the contexts share."""
        return find_shared(self.rows.ids, self.rows.starts[self.numbers], self.rows.contexts[self.numbers])

    def planner(self, arm: Arm, seed: int) -> BatchPlanner:
        """The planner of an arm."""
        tokens, contexts = self.rows.lengths[self.numbers], self.rows.contexts[self.numbers]
        sharing: dict[str, Any] = {}
        if arm.rows_per_cluster != 0:
            sharing = {"tree": self.tree, "rows_per_cluster": arm.rows_per_cluster}
        return BatchPlanner(
            row_tokens=tokens,
            row_trained_tokens=tokens - contexts,
            batching="shared" if sharing else "packed",
            tokens_per_batch=self.rows.tokens,
            seed=seed,
            **sharing,
        )

    def packs(self, arm: Arm, seed: int, epochs: range) -> list[Packs]:
        """The packs of some epochs, as arrays of int32."""
        planner, shares = self.planner(arm, seed), arm.rows_per_cluster != 0
        collate = PlannedCollator(DialogueCollator(), self.rows.tokens, min(LONGEST, self.rows.tokens), shares)
        found = []
        for epoch in epochs:
            plan, packs = planner.plan_epoch(epoch), []
            for index in range(len(plan)):
                chosen = plan.row_numbers(index)
                batch = collate((MicroBatch(chosen, 0, plan.shared_tokens(index)), [self._row(n) for n in chosen]))
                inputs = batch.model_inputs()
                arrays = {
                    k: v.numpy().astype(np.int32) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()
                }
                packs.append((arrays, batch.trained_tokens))
            found.append(packs)
        return found

    def _row(self, index: int) -> dict[str, Any]:
        number = self.numbers[index]
        ids = self.rows.ids[self.rows.starts[number] :][: self.rows.lengths[number]]
        return {"input_ids": ids, "seq_len": 1 if self.plain else int(self.rows.contexts[number]), "masked": []}


def on_device(packs: Packs, device: torch.device) -> Packs:
    """The packs as tensors on a device; their sizes that vary are marked, so that layers are compiled once."""
    moved = []
    for arrays, trained in packs:
        inputs: dict[str, Any] = {}
        for name, value in arrays.items():
            if isinstance(value, int):
                inputs[name] = value
                continue
            tensor = torch.from_numpy(value).to(device)
            inputs[name] = tensor if name.startswith("cu_") else tensor.long()
            if name in SIZES_VARY:
                torch._dynamo.maybe_mark_dynamic(inputs[name], 0)
        moved.append((inputs, trained))
    return moved


class Prepared:
    """Packs of runs, made by other processes some runs ahead. They must be forked before CUDA is used."""

    def __init__(self, part: Part, runs: list[tuple[int, Arm]], epochs: int) -> None:
        self._part, self._runs, self._epochs = part, deque(runs), range(epochs)
        self._pool = ProcessPoolExecutor(4, multiprocessing.get_context("fork"), _begin, (part,))
        self._futures: deque[Any] = deque()
        for _ in range(4):
            self._submit()

    def _submit(self) -> None:
        if self._runs:
            seed, arm = self._runs.popleft()
            self._futures.append((seed, arm, self._pool.submit(_packs, arm, seed, self._epochs)))

    def __iter__(self) -> Iterator[tuple[int, Arm, list[Packs]]]:
        while self._futures:
            seed, arm, future = self._futures.popleft()
            self._submit()
            yield seed, arm, future.result()

    def stop(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=False, cancel_futures=True)


_PART: list[Part] = []


def _begin(part: Part) -> None:
    torch.set_num_threads(1)
    _PART.append(part)


def _packs(arm: Arm, seed: int, epochs: range) -> list[Packs]:
    return _PART[0].packs(arm, seed, epochs)


def main() -> None:
    """Train the base, then the arms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--table", type=Path, default=Path("shared_quality.md"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--pretrain_steps", type=int, default=400)
    parser.add_argument("--arms", help="names with ; between them")
    parser.add_argument("--limit_s", type=float, default=1e9, help="start no run after this many seconds")
    parser.add_argument("--compiler", default="inductor", help="backend of torch.compile; none: eager")
    parser.add_argument("--base", type=Path, help="file of the trained base; it is written if it is not there")
    parser.add_argument("--quantization", choices=("fp8", "nf4"), help="of the frozen layers; unset: bfloat16")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    started_s = time.monotonic()
    device = torch.device("cpu" if options.tiny else "cuda")
    rows = Rows(options.rows, LONGEST if options.tiny else 8192)
    order = np.random.default_rng(7).permutation(len(rows.lengths))
    held_out, plain, tuned = np.split(order, [len(order) // 15, len(order) // 3])
    if options.tiny:
        held_out, plain, tuned, options.pretrain_steps = held_out[:4], plain[:8], tuned[:24], 2
    wanted = options.arms.split(";") if options.arms else None
    arms = [arm for arm in ARMS if wanted is None or arm.name in wanted]
    runs = [(seed, arm) for seed in range(options.seeds) for arm in arms]
    prepared = Prepared(Part(rows, tuned), runs, options.epochs)
    try:
        base = quantize(load_or_pretrain(Part(rows, plain, plain=True), options, device), options, device)
        tuner = Tuner(base, Part(rows, tuned), Part(rows, held_out), options, device)
        name = "CPU" if options.tiny else torch.cuda.get_device_name()
        results = Results(options.table, [arm.name for arm in arms], tuner.before)
        results.header = (
            f"\n## {time.strftime('%Y-%m-%d %H:%M')}, {name}\n\n{versions(device)}\n\n"
            f"    {shlex.join(['python', *sys.argv])}\n\n{len(plain)} rows of plain text, {len(tuned)} tuned, "
            f"{len(held_out)} held out. Loss of the base, {tuner.base_loss}; on held-out rows, {tuner.before:.4f}.\n"
        )
        print(results.header, flush=True)
        for seed, arm, packs in prepared:
            if time.monotonic() - started_s > options.limit_s:
                print("no time left", flush=True)
                break
            results.add(arm.name, seed, tuner.tune(arm, seed, packs))
            results.write()
        print(results.table())
    finally:
        prepared.stop()


def autocast(options: argparse.Namespace) -> torch.autocast:
    """bfloat16, on a GPU."""
    return torch.autocast("cpu" if options.tiny else "cuda", dtype=torch.bfloat16, enabled=not options.tiny)


def load_or_pretrain(part: Part, options: argparse.Namespace, device: torch.device) -> ChatGLM2ForCausalLM:
    """The base that was kept, or a new one."""
    config = ChatGLM2Config(**(NARROW if options.tiny else WIDE), padded_vocab_size=65024)
    implementation = "sdpa" if options.tiny else attention.VARLEN
    model = random_base(config, dtype=torch.float32, device=device, attn_implementation=implementation)
    assert model.transformer.encoder.layers[0].self_attention.config._attn_implementation == implementation
    if options.base and options.base.exists():
        model.load_state_dict(torch.load(options.base, map_location=device))
    else:
        pretrain(model, part, options, device)
        if options.base:
            torch.save(model.state_dict(), options.base)
    return model.train().requires_grad_(False).to(torch.float32 if options.tiny else torch.bfloat16)


def quantize(base: ChatGLM2ForCausalLM, options: argparse.Namespace, device: torch.device) -> ChatGLM2ForCausalLM:
    """Quantize the linear layers of the decoder, as a run does while it loads a base."""
    make = quantizer(options.quantization, torch.bfloat16, device)
    decoder = base.transformer.encoder.layers
    for name, module in list(decoder.named_modules()):
        if make and isinstance(module, nn.Linear):
            decoder.set_submodule(name, make(module, module.weight.detach()))
    base.is_loaded_in_4bit = options.quantization == "nf4"  # type: ignore[assignment]  # PEFT reads this flag
    return base


def pretrain(model: ChatGLM2ForCausalLM, part: Part, options: argparse.Namespace, device: torch.device) -> None:
    """Train a base on rows as plain text."""
    started_s = time.monotonic()
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=6e-4, betas=(0.9, 0.98), weight_decay=0.05, fused=not options.tiny
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-4, options.pretrain_steps)
    losses: list[torch.Tensor] = []
    while len(losses) < options.pretrain_steps:
        epoch = len(losses)  # only a seed
        for inputs, _ in on_device(part.packs(ARMS[0], 0, range(epoch, epoch + 1))[0], device):
            with autocast(options):
                loss = model(**inputs, use_cache=False, skip_logits=True).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.detach())
            if len(losses) % 100 == 0:
                print(f"base: step {len(losses)}, loss {loss.item():.4f}", flush=True)
            if len(losses) == options.pretrain_steps:
                break
    last = torch.stack(losses[-20:]).mean().item()
    print(f"base: loss {last:.4f} in the last 20 steps, {time.monotonic() - started_s:.0f} s", flush=True)
    assert np.isfinite(last)


class SumInBfloat16(torch.autograd.Function):
    """`GatherKeys` with sums in the dtype of the gradients."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Gather tokens."""
        ctx.save_for_backward(index)
        ctx.count = tokens.shape[0]
        return tokens.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Sum the gradients of each token."""
        (index,) = ctx.saved_tensors
        return gradient.new_zeros((ctx.count, *gradient.shape[1:])).index_add(0, index, gradient), None


class Tuner:
    """Tunes adapters, one after the other in the same modules, so that compiled layers are used again.

    All layers but the last are compiled; the last has a graph of its own, because it leaves out places without labels.

    Args:
        base: frozen.
        tuned: rows to tune on.
        held_out: rows of the losses.
        options: of the command line.
        device: of the base.
    """

    def __init__(
        self,
        base: ChatGLM2ForCausalLM,
        tuned: Part,
        held_out: Part,
        options: argparse.Namespace,
        device: torch.device,
    ) -> None:
        self.tuned, self.options, self.device = tuned, options, device
        lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["query_key_value"])
        self.model = attach_lora(base, lora, "base")
        self.model.train()
        self.loras = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        assert len(self.loras) == base.config.num_layers
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        assert len(self.trained) == 2 * len(self.loras)
        assert all(parameter.dtype == torch.float32 for parameter in self.trained)
        # all layers have the same graph, if the input of the first requires a gradient too
        base.get_input_embeddings().register_forward_hook(
            lambda _module, _inputs, output: output.requires_grad_(torch.is_grad_enabled())
        )
        self.layers = base.transformer.encoder.layers[:-1]
        self.held_out = on_device(held_out.packs(ARMS[0], 0, range(1))[0], device)
        self.base_loss = "not compiled"
        self.before = self.evaluate()  # in eager; B is zero
        if options.compiler != "none":
            self._compile(held_out)
        self._time(held_out)

    def _compile(self, part: Part) -> None:
        torch._dynamo.config.recompile_limit = 16
        for layer in self.layers:
            layer.compile(backend=self.options.compiler)
        for arm in (ARMS[0], ARMS[2]):
            self._few_steps(part, arm, 2)
        self.base_loss = f"compiled, {self.evaluate():.4f}"

    def _time(self, part: Part) -> None:
        for arm in (ARMS[0], ARMS[2]):
            self._few_steps(part, arm, 2)
            ms = self._few_steps(part, arm, 10)
            print(f"{arm.name}: {ms:.1f} ms a pack", flush=True)

    def _few_steps(self, part: Part, arm: Arm, count: int) -> float:
        """Forward and backward passes without optimizer steps; milliseconds of one."""
        packs = on_device(part.packs(arm, 0, range(1))[0][:count], self.device)
        self._wait()
        started_s = time.monotonic()
        for inputs, trained in packs:
            self._loss(inputs, trained).backward()
        self._wait()
        took_s = time.monotonic() - started_s
        norm = nn.utils.get_total_norm([parameter.grad for parameter in self.trained if parameter.grad is not None])
        for parameter in self.trained:
            parameter.grad = None
        print(f"{arm.name}: {len(packs)} packs, {took_s:.1f} s, gradients {norm.item():.5f}, {graphs()}", flush=True)
        return took_s * 1000 / len(packs)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _loss(self, inputs: dict[str, Any], count: int) -> torch.Tensor:
        with autocast(self.options):
            loss: torch.Tensor = self.model(**inputs, use_cache=False, skip_logits=True, num_items_in_batch=count).loss
        return loss

    def tune(self, arm: Arm, seed: int, epochs: list[Packs]) -> list[float]:
        """Tune an adapter; the held-out losses along the way."""
        started_s = time.monotonic()
        layers.GatherKeys = SumInBfloat16 if arm.sums == "bfloat16" else attention.GatherKeys
        torch.manual_seed(seed)
        for lora in self.loras:
            lora.reset_lora_parameters("default", init_lora_weights=True)
        self._set_dropout(arm.dropout)
        optimizer = torch.optim.AdamW(
            self.trained, lr=self.options.lr, weight_decay=0.0, fused=self.device.type == "cuda"
        )
        # equal steps for all arms: those of plain packs
        steps_per_epoch = max(1, self.tuned.planner(ARMS[0], 0).batches_per_epoch // arm.packs_per_step)
        assert len(epochs[0]) >= steps_per_epoch
        total = steps_per_epoch * len(epochs)
        schedule = LinearDecay(optimizer, total, warmup_steps=total // 20)
        measured = {max(1, round(total * part)) for part in MEASURED_AT}
        losses, step = [], 0
        for packs in epochs:
            moved = on_device(packs, self.device)
            for part in np.array_split(np.arange(len(moved)), steps_per_epoch):
                count = sum(moved[index][1] for index in part)
                for index in part:
                    self._loss(moved[index][0], count).backward()
                nn.utils.clip_grad_norm_(self.trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                step += 1
                if step in measured:
                    losses.append(self.evaluate())
                    self._set_dropout(arm.dropout)
        print(
            f"{arm.name}, seed {seed}: {len(epochs[0])} packs an epoch, {total} steps,",
            f"{time.monotonic() - started_s:.1f} s, {graphs()}:",
            *(f"{loss:.4f}" for loss in losses),
            flush=True,
        )
        return losses

    def _set_dropout(self, rate: float) -> None:
        for lora in self.loras:
            lora.lora_dropout["default"] = nn.Dropout(rate) if rate else nn.Identity()

    @torch.no_grad()
    def evaluate(self) -> float:
        """The mean loss of a trained token of held-out rows, as plain packs; ends without dropout."""
        self._set_dropout(0.0)  # the model has no other; in evaluation mode there would be more graphs
        losses = [self._loss(inputs, 1) for inputs, _ in self.held_out]
        return torch.stack(losses).sum().item() / sum(trained for _, trained in self.held_out)


def graphs() -> str:
    """How many graphs have been compiled so far."""
    return f"{torch._dynamo.utils.counters['stats']['unique_graphs']} graphs"


class Results:
    """Losses of all runs, written to a table and as JSON after every run.

    Args:
        file: the table; this appends a section.
        arms: their names.
        before: loss before tuning.
    """

    def __init__(self, file: Path, arms: list[str], before: float) -> None:
        self.file, self.before, self.header = file, before, ""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.earlier = file.read_text(encoding="utf-8") if file.exists() else ""
        self.losses: dict[str, dict[int, list[float]]] = {name: {} for name in arms}

    def add(self, arm: str, seed: int, losses: list[float]) -> None:
        """A run."""
        self.losses[arm][seed] = losses

    def write(self) -> None:
        """Write all runs so far."""
        self.file.write_text(f"{self.earlier}{self.header}\n{self.table()}\n", encoding="utf-8")
        found = {"before": self.before, "losses": self.losses}
        self.file.with_suffix(".json").write_text(json.dumps(found), encoding="utf-8")

    def table(self) -> str:
        """Mean and spread of each arm; differences from plain packs are of runs with the same seed."""
        lines = [
            "| arm | runs | along the way, mean | at the end, each seed | mean | standard deviation "
            "| minus packed, same seeds, mean ± standard error | improvement against packed |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, runs in self.losses.items():
            if not runs:
                lines.append(f"| {name} | not run | | | | | | |")
                continue
            finals = {seed: losses[-1] for seed, losses in runs.items()}
            control = "packed" + (", dropout" if "dropout" in name else ", 16 packs" if "16 packs" in name else "")
            along = " ".join(f"{fmean(values):.4f}" for values in zip(*runs.values(), strict=True))
            cells = [
                name,
                str(len(runs)),
                along,
                " ".join(f"{loss:.4f}" for loss in finals.values()),
                f"{fmean(finals.values()):.4f}",
                f"{stdev(finals.values()):.4f}" if len(finals) > 1 else "",
                *self._against(finals, {seed: losses[-1] for seed, losses in self.losses.get(control, {}).items()}),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def _against(self, finals: dict[int, float], control: dict[int, float]) -> tuple[str, str]:
        seeds = sorted(finals.keys() & control.keys())
        if not seeds or finals == control:
            return "", ""
        differences = [finals[seed] - control[seed] for seed in seeds]
        error = f" ± {stdev(differences) / len(seeds) ** 0.5:.4f}" if len(seeds) > 1 else ""
        ratio = -fmean(differences) / (self.before - fmean(control[seed] for seed in seeds))
        return f"{fmean(differences):+.4f}{error}", f"{ratio:+.2%}"


if __name__ == "__main__":
    main()
