"""The findings of `kyon-pl doctor`, and the report that prints them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kyon_pl.errors import KyonError
from kyon_pl.language import in_chinese, localized, wrapped
from kyon_pl.logs import replace_control_characters

if TYPE_CHECKING:
    from kyon_pl.doctor.memory import MemoryEstimate

State = Literal["ok", "warning", "missing"]
MARKS: dict[State, str] = {"ok": "ok", "warning": "!", "missing": "✗"}
GIB = 2**30
COLUMNS = 110

# The parts of the peak and their meaning; the formulas are in memory.py
MEMORY_PARTS = {
    "frozen_weights": "the base in the compute precision, all the time",
    "adapter": "trained weights, gradients and Adam's state, all the time",
    "workspace": "cuBLAS, all the time",
    "mask": "separates the rows of a pack where flash attention does not",
    "saved": "activations that the layers keep for the backward pass",
    "recomputed": "activations of one checkpointed layer during its backward pass",
    "layer_gradients": "the backward pass of one layer",
    "head": "logits of the trained tokens; not at the same time as a layer's backward pass",
    "validation": "a forward pass; not at the same time as a training batch",
}


@dataclass(frozen=True)
class Finding:
    """The result of one check, printed as one line.

    Attributes:
        name: what was checked.
        state: `ok`; `warning`: the run works, but with a drawback; `missing`: the run cannot work.
        found: what was found.
        fix: what to do; empty if nothing needs to be done.
    """

    name: str
    state: State
    found: str
    fix: str = ""

    def lines(self, width: int) -> list[str]:
        """The finding as printed lines, the fix below what was found.

        Args:
            width: of the column of names, in characters.
        """
        first = f"  {MARKS[self.state]:<2} {self.name:<{width}}  "
        rest = " " * len(first)
        lines = _wrap(localized(self.found), first, rest)
        return lines + _wrap(localized(self.fix), f"{rest}→ ", f"{rest}  ") if self.fix else lines


def error_finding(name: str, error: KyonError) -> Finding:
    """The finding for an error that would end the run."""
    return Finding(name, "missing", f"{error.where}: {error.found}", error.fix)


def gib(size_bytes: float) -> str:
    """A size in GiB, or in MiB if it is below 1 GiB."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:,.1f} GiB"
    return f"{size_bytes / 2**20:,.{0 if size_bytes >= 10 * 2**20 else 1}f} MiB"


def _wrap(text: str, first: str, rest: str) -> list[str]:
    if in_chinese():
        head, *lines = wrapped(text, COLUMNS - len(rest))
        return [first + head, *(rest + line for line in lines)]
    return textwrap.wrap(
        text, COLUMNS, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


@dataclass
class Report:
    """All findings, and the numbers behind them.

    Attributes:
        machine: findings about the machine.
        config: findings about the settings; empty without settings.
        numbers: the machine in numbers; the keys carry units.
        needs: the needs of the run in numbers; the keys carry units.
        memory: the estimated peak and its parts.
        advice: the largest packed batches that fit, in tokens, and the fewest layers that have to be checkpointed for
            the configured batch to fit (None: it never fits). Empty unless a GPU is here or planned for.
    """

    machine: list[Finding]
    config: list[Finding]
    numbers: dict[str, Any]
    needs: dict[str, Any] | None = None
    memory: MemoryEstimate | None = None
    advice: dict[str, int | None] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """The names of the findings in state `missing`."""
        return [finding.name for finding in self.machine + self.config if finding.state == "missing"]

    def as_dict(self) -> dict[str, Any]:
        """The report for `--json`; the keys are stable."""
        return {
            "works": not self.missing,
            "missing": self.missing,
            "machine": self.numbers,
            "config": self.needs,
            "advice": self.advice,
            "findings": {
                "machine": [asdict(finding) for finding in self.machine],
                "config": [asdict(finding) for finding in self.config],
            },
        }


def print_report(report: Report) -> None:
    """Print the sections machine, config and verdict."""
    width = max(len(finding.name) for finding in report.machine + report.config)
    for line in _report_lines(report, width):
        print(replace_control_characters(localized(line)))  # findings quote files and settings


def _report_lines(report: Report, width: int) -> Iterator[str]:
    yield "this machine"
    for finding in report.machine:
        yield from finding.lines(width)
    yield ""
    yield "this config"
    if not report.config:
        yield "     no config was given; add one: kyon-pl doctor --config configs/lora.yaml"
    for finding in report.config:
        yield from finding.lines(width)
    if report.memory is not None:
        yield from _memory_lines(report.memory)
    yield ""
    yield "verdict"
    yield from _verdict(report)


def _memory_lines(memory: MemoryEstimate) -> Iterator[str]:
    yield ""
    yield "     peak memory of one device, estimated from the shapes"
    for name, meaning in MEMORY_PARTS.items():
        if size_bytes := getattr(memory, name):
            yield f"     {name.replace('_', ' '):<16}{gib(size_bytes):>10}  {localized(meaning)}"
    yield f"     {'peak':<16}{gib(memory.peak):>10}  less than the sum: the parts do not all exist at the same time"


def _verdict(report: Report) -> Iterator[str]:
    if report.missing:
        subject = "this run cannot work here" if report.config else "no run can work here"
        yield f"  {MARKS['missing']:<2} {subject}; missing: {', '.join(report.missing)}"
    elif not report.config:
        yield f"  {MARKS['ok']:<2} nothing is missing"
    else:
        planned = report.needs is not None and not report.needs["device_is_here"]
        yield f"  {MARKS['ok']:<2} this run can work{' on such a machine' if planned else ''}"
    if report.needs is None or not report.advice:
        return
    memory = gib(report.needs["available_bytes"])
    yield f"     largest packed batch in {memory}, with gradient checkpointing and without:"
    sizes = [report.advice[f"tokens_per_batch_{name}_checkpointing"] for name in ("with", "without")]
    yield f"     {' and '.join(f'{tokens:,} tokens' if tokens else 'none' for tokens in sizes)}"
    if (layers := report.advice["checkpointed_layers"]) is not None:
        yield f"     fewest checkpointed layers that this batch needs: --model.checkpointing {layers or 'none'}"
