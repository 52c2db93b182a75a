"""Reading the first sheet of an Excel file (.xlsx): a ZIP of XML, ECMA-376 part 1, chapter 18."""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, iterparse

from kyon_pl.data.reading.tabular import NumberedCells, table_rows
from kyon_pl.data.reading.text_files import NumberedRows
from kyon_pl.errors import DataError

_ESCAPE = re.compile("_x([0-9A-Fa-f]{4})_")  # a character that XML does not allow
_BROKEN = (zipfile.BadZipFile, KeyError, ParseError, IndexError, ValueError, EOFError)


def excel_rows(path: Path) -> NumberedRows:
    """Yield the rows of the first sheet, all cells as text, with the row numbers of Excel.

    A number is read as Excel stores it, which for a date is the number of days since 1900.

    Args:
        path: the file.

    Raises:
        DataError: two columns have one name, or it is not an `.xlsx` file.
    """
    return table_rows(path, "row", _cells(path))


def sheet_names(path: Path) -> list[str]:
    """Return the names of all sheets, in order.

    Raises:
        DataError: it is not an `.xlsx` file.
    """
    try:
        with zipfile.ZipFile(path) as book:
            return [sheet.attrib["name"] for sheet in _elements(book, "xl/workbook.xml", "sheet")]
    except _BROKEN:
        raise _no_excel_file(path) from None


def _cells(path: Path) -> NumberedCells:
    try:
        with zipfile.ZipFile(path) as book:
            texts = []
            if "xl/sharedStrings.xml" in book.namelist():
                texts = [_text(item) for item in _elements(book, "xl/sharedStrings.xml", "si")]
            number = 0
            for row in _elements(book, _first_sheet(book), "row"):
                number = int(row.get("r", number + 1))
                cells: list[str | None] = []
                for cell in row:
                    index = _column(cell.attrib["r"]) if "r" in cell.attrib else len(cells)
                    cells += [None] * (index - len(cells)) + [_value(cell, texts)]
                if any(cells):
                    yield number, cells
    except _BROKEN:
        raise _no_excel_file(path) from None


def _no_excel_file(path: Path) -> DataError:
    fix = "Save it again as an Excel workbook (.xlsx) without a password, or as `CSV UTF-8`."
    return DataError(str(path), "not a readable .xlsx file", fix)


def _first_sheet(book: zipfile.ZipFile) -> str:
    sheet = next(_elements(book, "xl/workbook.xml", "sheet"))
    relation = next(value for name, value in sheet.attrib.items() if _local(name) == "id" and name != "id")
    relations = _elements(book, "xl/_rels/workbook.xml.rels", "Relationship")
    target = next(element.attrib["Target"] for element in relations if element.attrib["Id"] == relation)
    return posixpath.join("/xl", target).removeprefix("/")


def _elements(book: zipfile.ZipFile, name: str, tag: str) -> Iterator[Element]:
    """Yield the elements of a tag, each cleared when the next one is asked for."""
    with book.open(name) as file:
        for _, element in iterparse(file):
            if _local(element.tag) == tag:
                yield element
                element.clear()


def _local(name: str) -> str:
    """Return a name without its namespace, of which there are two."""
    return name.rpartition("}")[2]


def _column(reference: str) -> int:
    """Return the column of a cell, from 0: 27 of `AB3`."""
    index = 0
    for letter in reference.rstrip("0123456789"):
        index = index * 26 + ord(letter) - ord("A") + 1
    return index - 1


def _value(cell: Element, texts: list[str]) -> str | None:
    if cell.get("t") == "inlineStr":
        return _text(cell)
    value = next((child.text for child in cell if _local(child.tag) == "v"), None)
    return texts[int(value)] if cell.get("t") == "s" and value else value and _unescape(value)


def _text(element: Element) -> str:
    """Return the text of a cell, without the pronunciation (`rPh`) that Excel can add."""
    inside = (child for child in element if _local(child.tag) != "rPh")
    return "".join(_unescape(child.text or "") if _local(child.tag) == "t" else _text(child) for child in inside)


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
