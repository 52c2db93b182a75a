"""Text as the metrics of replies see it: without white space, and in runs of characters."""

from __future__ import annotations


def squeezed(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())


def n_grams(text: str, n: int) -> list[str]:
    """The runs of n characters of a text, in their order."""
    return [text[place : place + n] for place in range(len(text) - n + 1)]
