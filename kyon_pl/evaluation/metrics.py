"""Metrics of generated replies, on characters, as Chinese has it: white space does not count.

| name | from | what it says |
|---|---|---|
| `bleu` | 0 to 100 | n-grams of up to 4 characters in common with the reference; sacrebleu's `char`, not smoothed |
| `rouge_l` | 0 to 100 | longest common subsequence with the reference, F1, the mean over replies |
| `chrf` | 0 to 100 | n-grams of up to 6 characters in common with the reference, F2: to choose checkpoints by |
| `distinct_1`, `distinct_2` | 0 to 1 | different characters, or pairs, among all: low where all replies are alike |
| `repeated_4grams` | 0 to 1 | 4-grams that the same reply has had before: high where the model goes in circles |
| `stop_rate` | 0 to 1 | replies that ended by themselves and not at the limit |
| `length_ratio` | 0 up | characters of all replies to those of all references |
| `copied_share` | 0 to 1 | characters in runs of 8 or more that a memory or turn of the prompt holds word for word |
| `opens_with_name` | 0 to 1 | replies that open with the name that the reference opens with (`凉宫:「…`) |

All but `rouge_l` and `opens_with_name`, which are means over replies, count over all replies together; over all ranks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.text import SacreBLEUScore

from kyon_pl.evaluation.ratios import (
    CopiedShare,
    LengthRatio,
    OpensWithName,
    RepeatedNGrams,
    RougeL,
    StopRate,
    n_grams,
    squeezed,
)

CHRF_ORDER, CHRF_BETA = 6, 2  # characters; how much more recall counts than precision
COPIED_RUN = 8  # characters: shorter runs are names and turns of phrase, which a reply may well share


@dataclass(frozen=True)
class JudgedReply:
    """A reply and what it is judged by.

    Attributes:
        reply: what the model said.
        reference: the row's own target.
        memories: of its prompt, and the turns, which no mark tells from memories; a text each.
        stopped: the model ended the reply by itself.
    """

    reply: str
    reference: str
    memories: tuple[str, ...]
    stopped: bool


class ReplyMetrics:
    """All of them.

    Every rank updates with its own replies, none at all included, and then all compute together.

    Args:
        device: where the ranks exchange their counts from.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # compute groups would make one of two metrics whose counts happen to be equal at first
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

    def update(self, replies: Sequence[JudgedReply]) -> None:
        """Add replies."""
        self.metrics.update(  # each metric takes what it has a parameter for
            preds=[squeezed(reply.reply) for reply in replies],
            target=[[squeezed(reply.reference)] for reply in replies],
            memories=[[squeezed(text) for text in reply.memories] for reply in replies],
            stopped=[reply.stopped for reply in replies],
        )

    def compute(self) -> dict[str, float]:
        """The values by name; what the references leave nothing to count of is left out, as names where none has one.

        What is left out does not depend on the replies: a curve has all its points.
        """
        values = {name: float(value) for name, value in self.metrics.compute().items()}
        percent = {name: values[name] * 100 for name in ("bleu", "rouge_l", "chrf")}
        return {name: value for name, value in (values | percent).items() if not math.isnan(value)}


class Chrf(Metric):
    """chrF2 of all replies together, as sacrebleu computes it.

    torchmetrics' own leaves a reference out of the count where nothing of its reply is right, and so praises replies
    that are beside the point.
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
                said, wanted = Counter(n_grams(reply, order)), Counter(n_grams(reference, order))
                count[0] += (said & wanted).total()
                count[1] += said.total() if wanted else 0
                count[2] += wanted.total()
        self.counts += torch.tensor(counts, device=self.counts.device)

    def compute(self) -> Tensor:
        """No dimensions, float64."""
        counts = self.counts[(self.counts[:, 1:] > 0).all(1)]
        precision, recall = (counts[:, 0] / counts[:, side] for side in (1, 2))
        weighted = CHRF_BETA**2 * precision.mean() + recall.mean()
        f_score = (1 + CHRF_BETA**2) * precision.mean() * recall.mean() / weighted
        return f_score.nan_to_num(0.0)  # nothing in common


class Distinct(Metric):
    """Different n-grams of characters among all n-grams of all replies; 0 if there is none.

    Args:
        n: 1 or 2, so that an n-gram fits a whole number of 64 bits.
    """

    is_differentiable = False
    full_state_update = False
    grams: list[Tensor]

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.add_state("grams", [], dist_reduce_fx="cat")

    def update(self, preds: list[str]) -> None:
        """Add replies; without any, an empty tensor, since ranks wait for each other's."""
        numbers = [number(gram) for reply in preds for gram in n_grams(reply, self.n)]
        self.grams.append(torch.tensor(numbers, dtype=torch.int64, device=self.device))

    def compute(self) -> Tensor:
        """No dimensions, float64."""
        grams = self.grams if isinstance(self.grams, Tensor) else torch.cat(self.grams)  # one tensor after an exchange
        return torch.tensor(len(set(grams.tolist())) / max(1, len(grams)), dtype=torch.float64)


def number(gram: str) -> int:
    """A number for each n-gram of one or two characters; a hash would differ from process to process."""
    value = 0
    for character in gram:
        value = value << 21 | ord(character)  # Unicode ends below 2 ** 21
    return value
