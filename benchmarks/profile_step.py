"""Where the time of a training step goes: kernels by kind, and what the device waits.

    python benchmarks/profile_step.py --json profile.json --table results.md      one GPU, ChatGLM2-6B's shape
    python benchmarks/profile_step.py --device cpu --tiny                         a tiny shape, by torch's operators
    python benchmarks/profile_step.py --draw profile.json docs/profile.png        the picture, anywhere

It is arm_ours.py's bare loop: 5 steps for warming up, then 3 under torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arm_names import TINY_SHAPE, parse_arm
from rows import write_rows

WARMUP, PROFILED = 5, 3
US = 1e3  # of a millisecond
VOCABULARY, RANK = 65_024, 16  # in the shapes of a product they tell whose it is
HEAD, BASE, LORA, IDLE = "head and loss", "products of the base", "products of LoRA", "device idle"
# the first that matches the names of kernel and operator
KINDS = (
    ("norms, rotary, SwiGLU, dropout, sums (compiled)", r"^triton_"),
    ("attention, backward", r"(flash|fmha|attention|attn).*(bwd|backward)|(bwd|backward).*(flash|fmha|attention|attn)"),
    ("attention, forward", r"flash|fmha|attention|attn"),
    ("optimizer and clipping", r"multi_tensor|foreach|adam|vector_norm|lpnorm|clip"),
    (HEAD, r"softmax|nll_loss|cross_entropy"),
    (BASE, r"gemm|gemv|cutlass|nvjet|cublas|splitk|xmma|s16816|aten::(mm|addmm|bmm|baddbmm|linear|_scaled_mm)\b"),
    ("copies", r"memcpy|memset|copy|catarray|aten::(cat|_to_copy|zero_|fill_)"),
)


@dataclass(frozen=True)
class Work:
    """A kernel, or on a CPU an operator: its name, that of the operator behind it with its shapes, microseconds."""

    name: str
    operator: str
    shapes: str
    us: float

    def kind(self, vocabulary: int) -> str:
        """What it is for."""
        text = f"{self.name} {self.operator}".lower()
        kind = next((kind for kind, pattern in KINDS if re.search(pattern, text)), "everything else")
        sizes = {int(number) for number in re.findall(r"\d+", self.shapes)}
        if vocabulary in sizes and not re.search("embedding|index_select", text):  # a look-up reads the table
            return HEAD
        return LORA if kind == BASE and RANK in sizes else kind


def main() -> None:
    """Profile, or draw what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", default="bare", help="a bare one of arm_names.py")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape in float32")
    parser.add_argument("--table", type=Path, default=Path("profile.md"), help="Markdown file to append to")
    parser.add_argument("--json", type=Path, default=Path("profile.json"), help="where the numbers go")
    parser.add_argument("--draw", type=Path, nargs=2, metavar=("JSON", "PNG"), help="only draw what was found before")
    options = parser.parse_args()
    if options.draw:
        draw(json.loads(options.draw[0].read_text()), options.draw[1])
        return
    found = profile(options)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    write_table(found, options.table)


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """Train a few steps; milliseconds of a step by kind, and what else is worth knowing."""
    import torch
    from arm_clock import Clock
    from arm_ours import bare
    from arm_table import versions

    device, cuda = torch.device(options.device), options.device == "cuda"
    if not cuda:
        torch.set_num_threads(1)
    profiler = torch.profiler.profile(record_shapes=True)

    class ProfiledClock(Clock):
        """Starts and stops the profiler between steps."""

        wall_us = unprofiled_ms = 0.0

        def step(self, *counted: Any) -> bool:
            warm = super().step(*counted)
            if warm:
                self._synchronize()
                self.unprofiled_ms = self._between(self.marks[-3], self.marks[-1]) * 1e3 / 2
                profiler.start()
                self.wall_us = -time.perf_counter() * 1e6
            elif len(self.marks) == WARMUP + PROFILED:
                self._synchronize()
                self.wall_us += time.perf_counter() * 1e6
                profiler.stop()
            return warm

    arm, steps = parse_arm(options.arm, options.tiny), WARMUP + PROFILED
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = folder / "config.json" if options.tiny else None
        if tiny:
            tiny.write_text(json.dumps(TINY_SHAPE))
        write_rows(folder / "rows.jsonl", arm.rows(steps, options.tiny))
        clock = ProfiledClock(device, time.time(), WARMUP)
        result = bare(arm, folder / "rows.jsonl", folder, steps, clock, tiny)
        if cuda:
            profiler.export_chrome_trace(str(folder / "trace.json"))
            works, span_us, busy_us = read_trace(json.loads((folder / "trace.json").read_text())["traceEvents"])
        else:
            averages, span_us = profiler.key_averages(group_by_input_shape=True), clock.wall_us
            works = [Work(one.key, "", str(one.input_shapes), one.self_cpu_time_total) for one in averages]
            busy_us = sum(work.us for work in works)
    kinds, names = Counter[str](), Counter[tuple[str, str]]()
    vocabulary = TINY_SHAPE["padded_vocab_size"] if options.tiny else VOCABULARY
    for work in works:
        kind, ms = work.kind(vocabulary), work.us / US / PROFILED
        kinds[kind] += ms
        names[kind, work.name[:100]] += ms
    kinds[IDLE if cuda else "outside of operators"] = max(0.0, span_us - busy_us) / US / PROFILED
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "device": torch.cuda.get_device_name() if cuda else "one core of a CPU",
        "versions": versions(device),
        "arm": arm.name,
        "tokens": int(sum(map(int, clock.tokens[WARMUP:])) / PROFILED),
        "computed_tokens": int(sum(map(int, clock.computed[WARMUP:])) / PROFILED),
        "step_ms": span_us / US / PROFILED,
        "unprofiled_ms": clock.unprofiled_ms,
        "recompiled": result["recompiled"],
        "kinds_ms": dict(kinds.most_common()),
        "largest": [[kind, name, ms] for (kind, name), ms in names.most_common(40)],  # to see what was counted where
    }


def read_trace(events: list[dict[str, Any]]) -> tuple[list[Work], float, float]:
    """What ran on the device; microseconds from its first beginning to its last end; those with anything running."""
    behind = {e["args"].get("External id"): e for e in events if e.get("cat") == "cpu_op"}
    ran = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    ran.sort(key=lambda e: float(e["ts"]))
    works, busy_us, ended = [], 0.0, float(ran[0]["ts"])
    for event in ran:
        operator = behind.get(event["args"].get("External id"), {"name": "", "args": {}})
        shapes = str(operator["args"].get("Input Dims", ""))
        works.append(Work(event["name"], operator["name"], shapes, float(event["dur"])))
        ends = float(event["ts"]) + float(event["dur"])
        busy_us += max(0.0, ends - max(ended, float(event["ts"])))  # of kernels side by side, time counts once
        ended = max(ended, ends)
    return works, ended - float(ran[0]["ts"]), busy_us


def write_table(found: dict[str, Any], file: Path) -> None:
    """Append to a Markdown file, and print."""
    lines = [f"| {kind} | {ms:.2f} | {ms / found['step_ms']:.1%} |" for kind, ms in found["kinds_ms"].items()]
    text = (
        f"\n## {found['date']}, {found['device']}\n\n{found['versions']}\n\n    {found['command']}\n\n"
        f"A step of {found['tokens']:,} tokens of rows, {found['computed_tokens']:,} of them computed, "
        f"arm {found['arm']}: {found['step_ms']:.1f} ms under the profiler, "
        f"{found['unprofiled_ms']:.1f} ms without it; {found['recompiled']} graphs compiled after the warm-up.\n\n"
        "| kind | ms a step | share of the step |\n|---|---|---|\n" + "\n".join(lines) + "\n"
    )
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text)
    print("\n".join(f"RESULT {line}" for line in text.splitlines() if line), flush=True)


def draw(found: dict[str, Any], picture: Path) -> None:
    """A bar for each kind."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    kinds = dict(sorted(found["kinds_ms"].items(), key=lambda item: item[1]))
    figure, axes = pyplot.subplots(figsize=(9, 0.5 + 0.42 * len(kinds)), layout="constrained")
    bars = axes.barh(list(kinds), list(kinds.values()), color=["0.7" if kind == IDLE else "C0" for kind in kinds])
    axes.bar_label(bars, [f"{ms:.1f} ms, {ms / found['step_ms']:.1%}" for ms in kinds.values()], padding=4, fontsize=9)
    axes.set_xlim(0, 1.25 * max(kinds.values()))
    axes.set_xlabel("ms a step")
    axes.set_title(f"{found['arm']}, {found['tokens']:,} tokens a step, {found['device']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=120)
    print(f"RESULT {picture}")


if __name__ == "__main__":
    main()
