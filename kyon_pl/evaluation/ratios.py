"""Metrics that are one count over another."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import rouge_score


def squeezed(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())


def n_grams(text: str, n: int) -> list[str]:
    """The runs of n characters of a text, in their order."""
    return [text[place : place + n] for place in range(len(text) - n + 1)]


_NAME = re.compile(r"([^:：「」『』\"“”]{1,20})[:：]")


class Ratio(Metric):
    """Of two numbers, each summed over replies and ranks.

    Attributes:
        of_nothing: the value where there is nothing to count.
    """

    is_differentiable = False
    full_state_update = False
    of_nothing = math.nan
    part: Tensor
    whole: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("part", "whole"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, part: float, whole: float) -> None:
        """Count."""
        self.part += part
        self.whole += whole

    def compute(self) -> Tensor:
        """No dimensions, float64."""
        return self.part / self.whole if self.whole else torch.full_like(self.part, self.of_nothing)


class RougeL(Ratio):
    """The mean of ROUGE-L's F1.

    torchmetrics' own class keeps a list entry a reply, and ranks with different numbers of them would wait for each
    other for ever.
    """

    def update(self, preds: list[str], target: list[list[str]]) -> None:
        """Add replies and their references."""
        if preds:
            scores = rouge_score(preds, target, rouge_keys="rougeL", normalizer=str, tokenizer=list)
            self.add(float(scores["rougeL_fmeasure"]) * len(preds), len(preds))


class RepeatedNGrams(Ratio):
    """N-grams of characters that the same reply has had before.

    Args:
        n: characters.
    """

    of_nothing = 0.0

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def update(self, preds: list[str]) -> None:
        """Add replies."""
        for reply in preds:
            grams = n_grams(reply, self.n)
            self.add(len(grams) - len(set(grams)), len(grams))


class StopRate(Ratio):
    """Replies that ended by themselves."""

    def update(self, stopped: list[bool]) -> None:
        """Add replies."""
        self.add(sum(stopped), len(stopped))


class LengthRatio(Ratio):
    """Characters of the replies to those of their references."""

    def update(self, preds: list[str], target: list[list[str]]) -> None:
        """Add replies and their references."""
        for reply, (reference,) in zip(preds, target, strict=True):
            self.add(len(reply), len(reference))


class CopiedShare(Ratio):
    """Characters in runs that the prompt's memories hold word for word.

    Args:
        run: the shortest that counts, in characters.
    """

    of_nothing = 0.0

    def __init__(self, run: int) -> None:
        super().__init__()
        self.run = run

    def update(self, preds: list[str], memories: list[list[str]]) -> None:
        """Add replies and the memories of their prompts."""
        for reply, texts in zip(preds, memories, strict=True):
            known = {gram for text in texts for gram in n_grams(text, self.run)}
            grams = n_grams(reply, self.run)
            copied = {place + step for place, gram in enumerate(grams) if gram in known for step in range(self.run)}
            self.add(len(copied), len(reply))


class OpensWithName(Ratio):
    """Replies that open with the name that the reference opens with; references without one do not count."""

    def update(self, preds: list[str], target: list[list[str]]) -> None:
        """Add replies and their references."""
        for reply, (reference,) in zip(preds, target, strict=True):
            if name := role_name(reference):
                self.add(role_name(reply) == name, 1)


def role_name(text: str) -> str | None:
    """Who speaks, in a text without white space such as `凉宫:「…」`; None if nobody is named."""
    match = _NAME.match(text)
    return match[1] if match else None
