"""The parts of a report as one HTML file, which needs no other file and loads nothing."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import groupby

from kyon_pl.evaluation.held_out import Code
from kyon_pl.evaluation.parts import (
    Bullets,
    Exchange,
    Facts,
    Figure,
    Folded,
    Heading,
    Legend,
    Panel,
    Paragraph,
    Part,
    Quote,
    Table,
)
from kyon_pl.evaluation.report_messages import Language

MARK = '<meta name="generator" content="kyon-pl report">'
# nothing is loaded and no script runs, whatever the text of a reply is
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_DARK = "screen and (prefers-color-scheme: dark)"
_LANGUAGES = {"en": "en", "zh": "zh-Hans"}


def page(parts: Sequence[Part], language: Language) -> str:
    """The text of the file.

    Args:
        parts: of the report; the first is its title.
        language: of its words.
    """
    title = next((_text(part.text) for part in parts if isinstance(part, Heading)), "")
    style = files("kyon_pl.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    return "\n".join(
        (
            "<!doctype html>",
            f'<html lang="{_LANGUAGES[language]}">',
            '<head><meta charset="utf-8">',
            MARK,
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{title}</title>",
            f"<style>\n{style}</style></head>",
            "<body><main>",
            *_blocks(parts),
            "</main></body></html>\n",
        )
    )


def _blocks(parts: Iterable[Part]) -> Iterator[str]:
    for kind, group in groupby(parts, type):
        blocks = map(_block, group)
        yield f'<div class="exchanges">{"".join(blocks)}</div>' if kind is Exchange else "\n".join(blocks)


def _block(part: Part) -> str:
    match part:
        case Heading():
            return f"<h{part.level}>{_text(part.text)}</h{part.level}>"
        case Paragraph():
            return f"<p>{_text(part.text)}</p>"
        case Bullets():
            return f"<ul>{''.join(f'<li>{_text(item)}</li>' for item in part.items)}</ul>"
        case Facts():
            return f'<dl class="facts">{"".join(_fact(*row) for row in part.rows)}</dl>'
        case Table():
            return _table(part)
        case Quote():
            return f"<pre>{_text(part.text)}</pre>"
        case Folded():
            return f"<details><summary>{_text(part.title)}</summary>{_table(part.table)}</details>"
        case Exchange():
            return _exchange(part)
        case Figure():
            return _figure(part)
    raise TypeError(part)


def _fact(name: str, value: str) -> str:
    return f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in table.head)
    rows = ("".join(f"<td{_kind(cell)}>{_cell(cell)}</td>" for cell in row) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _kind(cell: str) -> str:
    """Cells with digits alone are aligned as numbers."""
    figures = cell.replace(" → ", "").strip("+-−–")
    return ' class="number"' if figures and not figures.strip("0123456789.,e+-% ()–") else ""


def _cell(cell: str) -> str:
    return f"<code>{_text(cell)}</code>" if isinstance(cell, Code) else _text(cell)


def _exchange(part: Exchange) -> str:
    replies = "".join(f"<div><h4>{_text(name)}</h4><p>{_text(reply)}</p></div>" for name, reply in part.replies)
    name, reference = map(_text, part.reference)
    return (
        f'<article><h3>{_text(part.question)}</h3><div class="sides">{replies}</div>'
        f'<p class="reference"><span>{name}</span> {reference}</p></article>'
    )


def _figure(part: Figure) -> str:
    panels = "".join(_panel(panel, part) for panel in part.panels)
    legend = f'<ul class="legend">{"".join(map(_legend, part.legend))}</ul>' if part.legend else ""
    return (
        f'<figure class="curves"><figcaption>{_text(part.title)}</figcaption>{legend}<div>{panels}</div>'
        f'<p class="axis">{_text(part.axis)} →</p></figure>'
    )


def _panel(panel: Panel, figure: Figure) -> str:
    title = _text(panel.title)
    return (
        f'<figure><figcaption>{title}</figcaption><picture><source media="{_DARK}" srcset="{_data(panel.dark)}">'
        f'<img alt="{_text(figure.title)}: {title}" src="{_data(panel.light)}"></picture></figure>'
    )


def _legend(entry: Legend) -> str:
    line = f"border-top-style:{entry.style};border-top-width:{entry.width * 1.6:.1f}px"
    style = f"--light:{entry.light};--dark:{entry.dark};{line}"
    return f'<li><span style="{style}"></span>{_text(entry.label)}</li>'


def _data(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


def _text(text: str) -> str:
    """The text with markup as entities, and unprintable characters as �."""
    shown = "".join(character if character.isprintable() or character == "\n" else "�" for character in text)
    return html.escape(shown)
