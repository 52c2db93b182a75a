"""Draws a session in a terminal as a moving picture, for the README: commands are typed, and what they print appears.

python docs/terminal_svg.py docs/demo.svg

The commands are run, in a temporary folder: a demo run of a minute, and a question to its character. Times between
lines are shortened. Browsers draw the picture with their own fonts; each character has its place, so that columns hold.
"""

from __future__ import annotations

import html
import shlex
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CELL_WIDTH, LINE_HEIGHT, MARGIN, FONT_PIXELS = 9, 22, 20, 15
COLUMNS = 92
TYPED_S, LINE_S, PAUSE_S, END_S = 0.045, 0.3, 1.0, 5.0  # a character typed, a line, before a command's output, the end
INK, PROMPT, PAPER = "#c9d1d9", "#79c0ff", "#0d1117"
FIT = "kyon-pl fit --config demo"
ASK = "kyon-pl chat --character demo --asker 小满 -p 钟楼在哪里？"
# lines of the run's log that are shown, by how they begin
SHOWN = ("data: train", "LoRA: ", "validation after step 153", "asked", "  base", "  tuned", "best adapter")
STYLE = """text{{font:{font}px ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,"Noto Sans Mono CJK SC",monospace;
fill:{ink};white-space:pre}}.p{{fill:{prompt}}}
@media(prefers-reduced-motion:reduce){{text,tspan{{animation:none!important;opacity:1!important}}}}"""


@dataclass(frozen=True)
class Part:
    """A piece of a line, and when it appears."""

    text: str
    column: int
    line: int
    at_s: float
    is_prompt: bool = False


def main(svg: Path) -> None:
    """Run the commands, and draw them."""
    with tempfile.TemporaryDirectory() as folder:
        fit = subprocess.run(
            [*shlex.split(FIT), "--trainer.enable_progress_bar", "false"],
            cwd=folder, check=True, capture_output=True, text=True,
        )  # fmt: skip
        reply = subprocess.run(shlex.split(ASK), cwd=folder, check=True, capture_output=True, text=True)
    log = [line for line in fit.stderr.splitlines() if line.startswith(SHOWN)]
    svg.write_text(drawn([(FIT, log), (ASK, reply.stdout.splitlines())]), encoding="utf-8")


def drawn(session: list[tuple[str, list[str]]]) -> str:
    """The picture of commands with the lines that they print."""
    parts = [*timed(session)]
    whole_s = parts[-1].at_s + END_S
    times = sorted({part.at_s for part in parts})
    frames = "".join(
        f"@keyframes k{number}{{0%,{100 * at_s / whole_s:.2f}%{{opacity:0}}{100 * at_s / whole_s + 0.01:.2f}%,"
        f"99.5%{{opacity:1}}100%{{opacity:0}}}}.k{number}{{animation:k{number} {whole_s:.1f}s infinite}}"
        for number, at_s in enumerate(times)
    )
    style = STYLE.format(font=FONT_PIXELS, ink=INK, prompt=PROMPT)
    width = COLUMNS * CELL_WIDTH + 2 * MARGIN
    height = (parts[-1].line + 1) * LINE_HEIGHT + 2 * MARGIN
    texts = "".join(text_of(part, times.index(part.at_s)) for part in parts)
    label = html.escape("; ".join(command for command, _ in session))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'<style>{style}{frames}</style><rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>{texts}</svg>\n'
    )


def timed(session: list[tuple[str, list[str]]]) -> Iterator[Part]:
    """The parts in the order in which they appear; commands are typed character by character."""
    at_s, line = 0.5, 0
    for command, printed in session:
        yield Part("$", 0, line, at_s, is_prompt=True)
        column = 2
        for character in command:
            at_s += TYPED_S
            yield Part(character, column, line, at_s)
            column += columns(character)
        at_s += PAUSE_S
        for text in printed:
            line += 1
            yield Part(fitted(text), 0, line, at_s)
            at_s += LINE_S
        line += 2
        at_s += PAUSE_S


def columns(character: str) -> int:
    """How many columns a character takes."""
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fitted(text: str) -> str:
    """A line that fits; a longer one ends in an ellipsis."""
    taken = 0
    for index, character in enumerate(text):
        taken += columns(character)
        if taken > COLUMNS:
            return text[: index - 2] + "…"
    return text


def text_of(part: Part, frame: int) -> str:
    """An element with the place of each character."""
    places, column = [], part.column
    for character in part.text:
        places.append(str(MARGIN + column * CELL_WIDTH))
        column += columns(character)
    y = MARGIN + part.line * LINE_HEIGHT + FONT_PIXELS
    kind = f"k{frame} p" if part.is_prompt else f"k{frame}"
    return f'<text class="{kind}" x="{" ".join(places)}" y="{y}">{html.escape(part.text)}</text>'


if __name__ == "__main__":
    main(Path(sys.argv[1]))
