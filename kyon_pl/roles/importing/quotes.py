"""The paragraphs of a novel, and the quotes in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from kyon_pl.roles.importing.found import Language

_CLOSING = {"「": "」", "『": "』", "“": "”", "«": "»", '"': '"', "＂": "＂", "‘": "’"}
_WRAPPED_CHARACTERS = (40, 90)  # of the lines of a text that is wrapped at a fixed width
_LINE_END = re.compile('[.。!！?？…”」』"]$')
_SCENE_BREAK = re.compile(
    r"\s*(?:第[\d零〇一二三四五六七八九十百千]{1,9}[章回节卷幕].{0,40}"
    r"|(?:chapter|part|scene)\s+[\divxlc]+\b.{0,60}|[*#=~—–•· -]{3,})\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Quote:
    """What stands between two quotation marks.

    Attributes:
        start, end: its place in the paragraph, marks included.
        words: the text between the marks.
        is_open: whether the mark at its end is missing, as where the speech goes on in the next paragraph.
    """

    start: int
    end: int
    words: str
    is_open: bool


@dataclass(frozen=True)
class Paragraph:
    """A paragraph.

    Attributes:
        line: its first line in the file, from 1.
        text: on one line.
        quotes: in order.
        opens_scene: whether a heading, a line of asterisks or the like is before it.
    """

    line: int
    text: str
    quotes: tuple[Quote, ...]
    opens_scene: bool

    def narration(self) -> list[str]:
        """The texts before, between and after the quotes; one more than there are quotes."""
        ends = [0, *(quote.end for quote in self.quotes)]
        starts = [*(quote.start for quote in self.quotes), len(self.text)]
        return [self.text[end:start] for end, start in zip(ends, starts, strict=True)]


def paragraphs_of(text: str, language: Language) -> list[Paragraph]:
    """The paragraphs of a text: its lines, or if it is wrapped at a fixed width, what is between blank lines.

    Args:
        text: of the file.
        language: Chinese lines are joined without a space.
    """
    single = "‘" if "‘" in text and not re.search('[「“"]', text) else ""
    opens_scene, found = True, []
    for line, block in _blocks(text, " " if language == "en" else ""):
        if _SCENE_BREAK.fullmatch(block):
            opens_scene = True
        else:
            found.append(Paragraph(line, block, tuple(_quotes(block, single)), opens_scene))
            opens_scene = False
    return found


def _blocks(text: str, space: str) -> Iterator[tuple[int, str]]:
    lines = [line.strip() for line in text.splitlines()]
    lengths = [len(line) for line in lines if line]
    continued = [line for line, following in pairwise(lines) if line and following]
    ended = sum(_LINE_END.search(line) is not None for line in continued)
    low, high = _WRAPPED_CHARACTERS
    wrapped = "" in lines and 3 * len(continued) > len(lengths) > 3 and 2 * ended < len(continued)
    wrapped = wrapped and low <= median(map(len, continued)) and max(lengths) <= high
    block: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line:
            block.append(line)
        if block and (not line or not wrapped):
            yield number - len(block) + bool(line), space.join(block)
            block = []


def _quotes(text: str, single: str) -> Iterator[Quote]:
    place = 0
    while place < len(text):
        mark = text[place]
        if mark not in _CLOSING or (mark == "‘" and not single):
            place += 1
            continue
        end = _end(text, place, mark)
        yield Quote(place, min(end + 1, len(text)), text[place + 1 : end].strip(), end == len(text))
        place = end + 1


def _end(text: str, start: int, mark: str) -> int:
    """The place of the mark that closes a quote, quotes of the same marks inside it skipped; else the text's end."""
    depth, closing = 0, _CLOSING[mark]
    for place in range(start + 1, len(text)):
        if text[place] == closing and not (mark == "‘" and text[place + 1 : place + 2].isalpha()):
            if depth == 0:
                return place
            depth -= 1
        elif text[place] == mark:
            depth += 1
    return len(text)
