"""Draws what a command prints into a terminal, for the README.

Needs Pillow, and the fonts DejaVu Sans Mono and Noto Sans CJK (Debian: fonts-dejavu-core, fonts-noto-cjk).

python docs/terminal_png.py docs/preview.png kyon-pl preview --config configs/demo.yaml --seed_everything 2249
python docs/terminal_png.py docs/chat.png --type '["/compare", "…"]' kyon-pl chat --character demo --asker 南枝
"""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS = 104
CELL_WIDTH, CELL_HEIGHT = 18, 42  # pixels; a full-width character takes two cells
MARGIN = 36
FONT_PIXELS = 30
NARROW_FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf"
WIDE_FONT = "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc"
SIMPLIFIED_CHINESE = 2  # its place in that collection

BACKGROUND, PLAIN = "#0d1117", "#c9d1d9"
COLOURS = {"32": "#56d364", "36": "#79c0ff", "38;5;245": "#8b949e"}
REVERSED = ";7"
PROMPT = b"> "


@dataclass(frozen=True)
class Cell:
    """One character and its colours."""

    character: str
    ink: str
    paper: str

    @property
    def columns(self) -> int:
        """How many columns it takes."""
        return 2 if unicodedata.east_asian_width(self.character) in "WF" else 1


def main(png: Path, words: list[str]) -> None:
    """Run the command and draw its output under a prompt with the command; `--last N`: the last lines of its log.

    `--type LINES`: a list of what is typed, each line at the next prompt.
    """
    option, command = (words[0], words[2:]) if words[0] in ("--last", "--type") else ("", words)
    if option == "--last":
        said = "\n".join(["…", *log_of(command).splitlines()[-int(words[1]) :]])
    else:
        said = output_of(command, json.loads(words[1]) if option else [])
    shown = f"\x1b[36m$ \x1b[0m{shlex.join(command)}\n\n{said}"
    lines = [line for text in shown.rstrip().split("\n") for line in wrapped(list(cells(text)))]
    size = COLUMNS * CELL_WIDTH + 2 * MARGIN, len(lines) * CELL_HEIGHT + 2 * MARGIN
    picture = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw_line(draw, line, MARGIN + number * CELL_HEIGHT)
    picture.quantize(64).save(png, optimize=True)


def log_of(command: list[str]) -> str:
    """What it says on standard error."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def output_of(command: list[str], typed: list[str]) -> str:
    """What it prints into a terminal on standard output, with what is typed; standard error is for the log."""
    ours, its = pty.openpty()
    plain = os.environ | {"TERM": "dumb"} if typed else None
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=subprocess.DEVNULL, env=plain)
    to_type = [*typed, "\x04"] if typed else []
    os.close(its)
    printed = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how a pseudo terminal says that nobody writes to it any more
            break
        if not part:
            break
        printed += part
        if to_type and printed.endswith(PROMPT):
            line = to_type.pop(0)
            os.write(ours, line.encode() + (b"\n" if to_type else b""))
    if process.wait():
        raise SystemExit(f"{shlex.join(command)} failed")
    return printed.decode().replace("\r\n", "\n")


def cells(text: str) -> Iterator[Cell]:
    """A line's characters in their colours."""
    ink, paper = PLAIN, BACKGROUND
    for code, characters in re.findall(r"\x1b\[([\d;]*)m|([^\x1b]+)", text):
        if characters:
            yield from (Cell(character, ink, paper) for character in characters)
            continue
        ink = COLOURS.get(code.removesuffix(REVERSED).removeprefix("1;"), PLAIN)
        paper = BACKGROUND
        if code.endswith(REVERSED):
            ink, paper = paper, ink


def wrapped(line: list[Cell]) -> Iterator[list[Cell]]:
    """A line as a terminal breaks it: at its last column, wherever that is."""
    part: list[Cell] = []
    for cell in line:
        if sum(other.columns for other in part) + cell.columns > COLUMNS:
            yield part
            part = []
        part.append(cell)
    yield part


def draw_line(draw: ImageDraw.ImageDraw, line: list[Cell], top: int) -> None:
    """Draw one line of cells."""
    narrow = ImageFont.truetype(NARROW_FONT, FONT_PIXELS)
    wide = ImageFont.truetype(WIDE_FONT, FONT_PIXELS, index=SIMPLIFIED_CHINESE)
    left, baseline = MARGIN, top + CELL_HEIGHT * 3 // 4
    for cell in line:
        width = cell.columns * CELL_WIDTH
        draw.rectangle((left, top + 3, left + width - 1, top + CELL_HEIGHT - 4), fill=cell.paper)
        font = wide if cell.columns == 2 else narrow
        draw.text((left + width // 2, baseline), cell.character, font=font, fill=cell.ink, anchor="ms")
        left += width


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
