"""Findings of the doctor, and how they are printed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kyon_pl.errors import KyonError

if TYPE_CHECKING:
    from kyon_pl.doctor.memory import MemoryEstimate


State = Literal["ok", "warning", "missing"]
MARKS: dict[State, str] = {"ok": "ok", "warning": "!", "missing": "✗"}
GIB = 2**30
COLUMNS = 110


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        name: of what was looked at.
        state: `ok`; `warning`: it works, but look at it; `missing`: the run cannot work.
        found: what there is.
        fix: what to do, where there is something to do.
    """

    name: str
    state: State
    found: str
    fix: str = ""

    def lines(self, width: int) -> list[str]:
        """The line, and what to do below it.

        Args:
            width: of the column of names.
        """
        first = f"  {MARKS[self.state]:<2} {self.name:<{width}}  "
        rest = " " * len(first)
        lines = _wrapped(self.found, first, rest)
        return lines + _wrapped(self.fix, f"{rest}→ ", f"{rest}  ") if self.fix else lines


def finding_of(name: str, error: KyonError) -> Finding:
    """An error that a run would end with, found before."""
    return Finding(name, "missing", f"{error.where}: {error.found}", error.fix)


def gib(size_bytes: float) -> str:
    """Bytes in GiB, or in MiB where that says more."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:,.1f} GiB"
    return f"{size_bytes / 2**20:,.{0 if size_bytes >= 10 * 2**20 else 1}f} MiB"


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, COLUMNS, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


# the parts of the peak, and what each is; their formulas stand in `memory_parts.py`
MEMORY_PARTS = {
    "frozen_weights": "the base in the compute precision, all the time",
    "adapter": "trained weights, gradients and Adam's state, all the time",
    "workspace": "cuBLAS, all the time",
    "mask": "keeps the rows of a pack apart where flash attention does not",
    "saved": "kept by the layers for the backward pass",
    "recomputed": "one layer, computed again for its backward pass",
    "layer_gradients": "the backward pass of one layer",
    "head": "logits of the trained tokens; no layer is computed then",
    "validation": "a forward pass; no training batch is there then",
}


@dataclass
class Report:
    """Everything that was found.

    Attributes:
        machine: the lines about the machine.
        config: the lines about the settings; none without settings.
        numbers: of the machine, under names with units.
        needs: of the settings, likewise.
        memory: the peak and its parts.
        advice: the largest packed batches that fit, in tokens, and the fewest layers of the configured batch that have
            to be checkpointed (None: all are too few); none without a GPU, here or planned for.
    """

    machine: list[Finding]
    config: list[Finding]
    numbers: dict[str, Any]
    needs: dict[str, Any] | None = None
    memory: MemoryEstimate | None = None
    advice: dict[str, int | None] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """The names of what is missing."""
        return [finding.name for finding in self.machine + self.config if finding.state == "missing"]

    def as_dict(self) -> dict[str, Any]:
        """The same content for a program; the keys stay as they are."""
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
    """Print the three sections."""
    for line in report_lines(report):
        print(line)


def report_lines(report: Report) -> Iterator[str]:
    """The three sections, line by line."""
    width = max(len(finding.name) for finding in report.machine + report.config)
    yield "this machine"
    for finding in report.machine:
        yield from finding.lines(width)
    yield ""
    yield "this config"
    if not report.config:
        yield "     none was looked at; add one: kyon-pl doctor --config configs/lora.yaml"
    for finding in report.config:
        yield from finding.lines(width)
    if report.memory is not None:
        yield from _memory_lines(report.memory)
    yield ""
    yield "verdict"
    yield from _verdict(report)


def _memory_lines(memory: MemoryEstimate) -> Iterator[str]:
    yield ""
    yield "     peak of one device's memory, estimated from the shapes"
    for name, meaning in MEMORY_PARTS.items():
        if size_bytes := getattr(memory, name):
            yield f"     {name.replace('_', ' '):<16}{gib(size_bytes):>10}  {meaning}"
    yield f"     {'peak':<16}{gib(memory.peak):>10}  not the sum: what is there at one time"


def _verdict(report: Report) -> Iterator[str]:
    if report.missing:
        thing = "this run cannot work here" if report.config else "no run can work here"
        yield f"  {MARKS['missing']:<2} {thing}; missing: {', '.join(report.missing)}"
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
