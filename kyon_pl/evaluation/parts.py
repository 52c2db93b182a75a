"""The parts of a report. Their texts are plain; the writers of Markdown and HTML escape them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title of the report."""

    text: str
    level: Literal[1, 2] = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """A few values with their names, the first thing to look at."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table; cells of class `Code` are shown as code."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Quote:
    """Lines of a file, as they are."""

    text: str


@dataclass(frozen=True)
class Folded:
    """A long table that is closed at first, where the format can do that."""

    title: str
    table: Table


@dataclass(frozen=True)
class Exchange:
    """A question and replies to it, side by side.

    Attributes:
        question: the question.
        replies: pairs of who replies, and the reply.
        reference: pair of the word for it, and the true reply.
    """

    question: str
    replies: Sequence[tuple[str, str]]
    reference: tuple[str, str]


@dataclass(frozen=True)
class Panel:
    """A small picture.

    Attributes:
        title: its caption.
        light: SVG for a light page.
        dark: SVG for a dark page.
    """

    title: str
    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Legend:
    """What a line in a figure stands for.

    Attributes:
        label: the meaning.
        light: colour on a light page.
        dark: colour on a dark page.
        style: as in CSS.
        width: in points.
    """

    label: str
    light: str
    dark: str
    style: Literal["solid", "dotted"]
    width: float


@dataclass(frozen=True)
class Figure:
    """Curves.

    Attributes:
        name: of the PNG file, without its suffix.
        title: what it shows.
        panels: the same curves, for HTML.
        legend: one for all panels; empty if there is one line in each.
        axis: what is on the horizontal axes.
    """

    name: str
    title: str
    panels: Sequence[Panel]
    legend: Sequence[Legend]
    axis: str


Part = Heading | Paragraph | Bullets | Facts | Table | Quote | Folded | Exchange | Figure
