"""Metrics of generated replies, computed on characters without white space, which suits Chinese.

| name | range | meaning |
|---|---|---|
| `bleu` | 0 to 100 | n-grams of up to 4 characters shared with the reference; sacrebleu's `char`, not smoothed |
| `rouge_l` | 0 to 100 | longest common subsequence with the reference, F1, mean over replies |
| `chrf` | 0 to 100 | n-grams of up to 6 characters shared with the reference, F2; use it to choose checkpoints |
| `distinct_1`, `distinct_2` | 0 to 1 | share of distinct characters, or pairs; low if all replies are alike |
| `repeated_4grams` | 0 to 1 | 4-grams that occurred before in the same reply; high if the model repeats itself |
| `stop_rate` | 0 to 1 | replies that ended with the end-of-sequence token and not at the limit |
| `length_ratio` | 0 up | characters of all replies divided by those of all references |
| `copied_share` | 0 to 1 | characters in runs of 8 or more that a memory or turn of the prompt contains verbatim |
| `opens_with_name` | 0 to 1 | replies that begin with the same name as the reference (`凉宫:「…`) |

`rouge_l` and `opens_with_name` are means over replies; the others pool all replies. All of them include all ranks.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional.text import rouge_score
from torchmetrics.text import SacreBLEUScore

CHRF_ORDER, CHRF_BETA = 6, 2  # characters; weight of recall relative to precision
COPIED_RUN = 8  # characters: shorter runs are names and phrases that a reply may share
_NAME = re.compile(r"([^:：「」『』\"“”]{1,20})[:：]")


@dataclass(frozen=True)
class JudgedReply:
    """A reply with what it is compared to.

    Attributes:
        reply: the generated text.
        reference: the target of the row.
        memories: the memories and turns of the prompt, which are not distinguished.
        stopped: whether the reply ended with the end-of-sequence token.
    """

    reply: str
    reference: str
    memories: tuple[str, ...]
    stopped: bool


class ReplyMetrics:
    """All metrics of replies.

    Each rank updates with its own replies, possibly none; then all ranks compute together.

    Args:
        device: the device on which the ranks exchange their states.
        alone: compute from the replies of this rank only, as often as the states change.
    """

    def __init__(self, device: torch.device | str = "cpu", *, alone: bool = False) -> None:
        # compute groups would merge two metrics whose states happen to be equal after the first update
        self.metrics = MetricCollection(
            {
                "bleu": SacreBLEUScore(tokenize="char"),
                "rouge_l": RougeL(),
                "chrf": Chrf(),
                "distinct_1": Distinct(1),
                "distinct_2": Distinct(2),
                "repeated_4grams": RepeatedNGrams(4),
                "stop_rate": StopRate(),
                "length_ratio": LengthRatio(),
                "copied_share": CopiedShare(COPIED_RUN),
                "opens_with_name": OpensWithName(),
            },
            compute_groups=False,
        ).to(device)
        for metric in self.metrics.values():
            metric.sync_on_compute = not alone
            metric.compute_with_cache = not alone

    def update(self, replies: Sequence[JudgedReply]) -> None:
        """Add replies."""
        self.metrics.update(  # each metric takes the arguments that it has parameters for
            preds=[remove_whitespace(reply.reply) for reply in replies],
            target=[[remove_whitespace(reply.reference)] for reply in replies],
            memories=[[remove_whitespace(text) for text in reply.memories] for reply in replies],
            stopped=[reply.stopped for reply in replies],
        )

    def compute(self) -> dict[str, float]:
        """The values by name, without metrics that the references do not define, such as names if none has a name.

        The set of names does not depend on the replies, so that every point of a curve exists.
        """
        return _readable({name: float(value) for name, value in self.metrics.compute().items()})

    def reset(self) -> None:
        """Forget all replies."""
        self.metrics.reset()

    def sums(self) -> dict[str, dict[str, Tensor]]:
        """The states of each metric that is computed from sums over replies, copied."""
        found = {}
        for name, metric in self.metrics.items():
            state = {key: value.clone() for key, value in metric.metric_state.items() if isinstance(value, Tensor)}
            if len(state) == len(metric.metric_state):
                found[name] = state
        return found

    def compute_from(self, sums: dict[str, dict[str, Tensor]]) -> dict[str, float]:
        """The values of these metrics if their states were others."""
        values = {}
        for name, state in sums.items():
            metric = self.metrics[name]
            for key, value in state.items():
                setattr(metric, key, value)
            values[name] = float(metric.compute())
        return _readable(values)


def _readable(values: dict[str, float]) -> dict[str, float]:
    percent = {name: values[name] * 100 for name in ("bleu", "rouge_l", "chrf") if name in values}
    return {name: value for name, value in (values | percent).items() if not math.isnan(value)}


class Chrf(Metric):
    """chrF2 over all replies, as sacrebleu computes it.

    The class of torchmetrics drops references whose reply shares no n-gram with them, and so overrates such replies.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        # (orders, 3): n-grams in common, of the replies, of the references
        self.add_state("counts", torch.zeros(CHRF_ORDER, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: list[str], target: list[list[str]]) -> None:
        """Add replies and their references."""
        counts = [[0, 0, 0] for _ in range(CHRF_ORDER)]
        for reply, (reference,) in zip(preds, target, strict=True):
            for order, count in enumerate(counts, start=1):
                ours, theirs = Counter(n_grams(reply, order)), Counter(n_grams(reference, order))
                count[0] += (ours & theirs).total()
                count[1] += ours.total() if theirs else 0
                count[2] += theirs.total()
        self.counts += torch.tensor(counts, device=self.counts.device)

    def compute(self) -> Tensor:
        """A scalar in float64, 0 to 1."""
        counts = self.counts[(self.counts[:, 1:] > 0).all(1)]
        precision, recall = (counts[:, 0] / counts[:, side] for side in (1, 2))
        weighted = CHRF_BETA**2 * precision.mean() + recall.mean()
        f_score = (1 + CHRF_BETA**2) * precision.mean() * recall.mean() / weighted
        return f_score.nan_to_num(0.0)  # nothing in common


class Distinct(Metric):
    """Share of distinct n-grams of characters among all n-grams of all replies; 0 if there are none.

    Args:
        n: 1 or 2, so that an n-gram fits an integer of 64 bits.
    """

    is_differentiable = False
    full_state_update = False
    grams: list[Tensor]

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.add_state("grams", [], dist_reduce_fx="cat")

    def update(self, preds: list[str]) -> None:
        """Add replies; without replies, an empty tensor, because ranks wait for each other's tensors."""
        ids = [n_gram_id(gram) for reply in preds for gram in n_grams(reply, self.n)]
        self.grams.append(torch.tensor(ids, dtype=torch.int64, device=self.device))

    def compute(self) -> Tensor:
        """A scalar in float64, 0 to 1."""
        grams = self.grams if isinstance(self.grams, Tensor) else torch.cat(self.grams)  # a tensor after the exchange
        return torch.tensor(len(set(grams.tolist())) / max(1, len(grams)), dtype=torch.float64)


class Ratio(Metric):
    """The ratio of two numbers, each summed over replies and ranks. Subclasses call `add` in `update`.

    Attributes:
        empty_value: the value if the denominator is 0.
    """

    is_differentiable = False
    full_state_update = False
    empty_value = math.nan
    numerator: Tensor
    denominator: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("numerator", "denominator"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, numerator: float, denominator: float) -> None:
        """Add to both sums."""
        self.numerator += numerator
        self.denominator += denominator

    def compute(self) -> Tensor:
        """A scalar in float64."""
        if not self.denominator:
            return torch.full_like(self.numerator, self.empty_value)
        return self.numerator / self.denominator


class RougeL(Ratio):
    """The mean F1 of ROUGE-L.

    The class of torchmetrics keeps one list entry per reply, so ranks with different numbers of replies would deadlock.
    """

    def update(self, preds: list[str], target: list[list[str]]) -> None:
        """Add replies and their references."""
        if preds:
            scores = rouge_score(preds, target, rouge_keys="rougeL", normalizer=str, tokenizer=list)
            self.add(float(scores["rougeL_fmeasure"]) * len(preds), len(preds))


class RepeatedNGrams(Ratio):
    """Share of n-grams of characters that occurred before in the same reply.

    Args:
        n: length of an n-gram, in characters.
    """

    empty_value = 0.0

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def update(self, preds: list[str]) -> None:
        """Add replies."""
        for reply in preds:
            grams = n_grams(reply, self.n)
            self.add(len(grams) - len(set(grams)), len(grams))


class StopRate(Ratio):
    """Share of replies that ended with the end-of-sequence token."""

    def update(self, stopped: list[bool]) -> None:
        """Add replies."""
        self.add(sum(stopped), len(stopped))


class LengthRatio(Ratio):
    """Characters of the replies divided by characters of their references."""

    def update(self, preds: list[str], target: list[list[str]]) -> None:
        """Add replies and their references."""
        for reply, (reference,) in zip(preds, target, strict=True):
            self.add(len(reply), len(reference))


class CopiedShare(Ratio):
    """Share of characters in runs that a memory of the prompt contains verbatim.

    Args:
        run: the shortest run that counts, in characters.
    """

    empty_value = 0.0

    def __init__(self, run: int) -> None:
        super().__init__()
        self.run = run

    def update(self, preds: list[str], memories: list[list[str]]) -> None:
        """Add replies and the memories of their prompts."""
        for reply, texts in zip(preds, memories, strict=True):
            known = {gram for text in texts for gram in n_grams(text, self.run)}
            grams = n_grams(reply, self.run)
            copied = {start + offset for start, gram in enumerate(grams) if gram in known for offset in range(self.run)}
            self.add(len(copied), len(reply))


class OpensWithName(Ratio):
    """Share of replies that begin with the same name as the reference; references without a name do not count."""

    def update(self, preds: list[str], target: list[list[str]]) -> None:
        """Add replies and their references."""
        for reply, (reference,) in zip(preds, target, strict=True):
            if name := role_name(reference):
                self.add(role_name(reply) == name, 1)


def remove_whitespace(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())


def n_grams(text: str, n: int) -> list[str]:
    """The substrings of n characters, in order."""
    return [text[start : start + n] for start in range(len(text) - n + 1)]


def n_gram_id(gram: str) -> int:
    """A unique integer for an n-gram of one or two characters, the same in every process (a hash is not)."""
    value = 0
    for character in gram:
        value = value << 21 | ord(character)  # code points are below 2 ** 21
    return value


def role_name(text: str) -> str | None:
    """The speaker's name at the beginning of a text without white space such as `凉宫:「…」`; None if there is none."""
    match = _NAME.match(text)
    return match[1] if match else None
