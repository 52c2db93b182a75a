"""What stands in docs/ is what the code says."""

from __future__ import annotations

import ast
import importlib.util
import re
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from kyon_pl import DialogueDataModule
from kyon_pl.language import CATALOGUE, FIELD, read_catalogue

ROOT = Path(__file__).parents[2]
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split() if "==" in line
)


@pytest.fixture(scope="module")
def configuration() -> ModuleType:
    spec = importlib.util.spec_from_file_location("configuration", ROOT / "docs/configuration.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table(configuration: ModuleType) -> dict[str, Any]:
    return configuration.table()


@pytest.mark.skipif(
    any(version(name) != PINNED[name] for name in ("lightning", "peft")),
    reason="the meaning of the Trainer's and of LoRA's settings is in the words of the pinned versions",
)
def test_table_and_page_are_generated(configuration: ModuleType, table: dict[str, Any]) -> None:
    written = configuration.TABLE.read_text(encoding="utf-8"), configuration.PAGE.read_text(encoding="utf-8")
    generated = configuration.as_json(table), configuration.page(table)
    assert generated == written, "options.json and configuration.md are not what the code says: run make docs"


def test_a_changed_default_or_docstring_changes_the_table(configuration: ModuleType) -> None:
    def parser_of(default: int, text: str) -> dict[str, Any]:
        parser = ArgumentParser()
        parser.add_argument("--rows", type=int, default=default, help=text)
        return configuration.entry(parser._actions[-1])

    written = parser_of(3, "how many")
    assert written == {"name": "rows", "types": ["int"], "default": 3, "meaning": "how many"}
    assert parser_of(4, "how many") != written != parser_of(3, "how many rows")


def test_every_setting_of_ours_has_a_meaning(configuration: ModuleType, table: dict[str, Any]) -> None:
    """One line each, with something in the last column."""
    rows = [line for line in configuration.page(table).splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []
    assert {len(row) < 700 for row in rows} == {True}


def test_the_way_of_a_row_has_the_demo_numbers() -> None:
    page = (ROOT / "docs/how_it_works.md").read_text(encoding="utf-8")
    data = DialogueDataModule(
        "demo", validation_source="demo", max_tokens=512, tokens_per_batch=1024, workers=0, tokenizer="demo", seed=2023
    )
    data.setup("fit")
    loader = data.train_dataloader()
    batch = next(iter(loader))
    row = int(batch.cu_seqlens[1])
    trained = int((batch.labels[0, :row] != -100).sum())
    assert batch.row_numbers[0] + 1 == 353
    assert f"| the row | {row} | {row - trained} masked, {trained} trained |" in page
    assert f"{len(loader)} micro-batches" in page
    assert f"{tuple(batch.input_ids.shape)} int64 | {batch.tokens} real tokens, {batch.trained_tokens} of them" in page
    assert f"{tuple(batch.cu_seqlens.shape)} int32 | where each of the {len(batch.row_numbers)} rows" in page
    assert f"({batch.trained_tokens}, 2048)" in page


@pytest.mark.parametrize("page", ["reliability.md", "how_it_works.md", "laptop.md"])
def test_named_files_and_tests_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+/[\w/]+\.py(?:::\w+)?)`", text):
        file, _, test = name.partition("::")
        path = ROOT / file if file.startswith("tests/") else ROOT / "kyon_pl" / file
        assert path.is_file(), name
        assert not test or f"def {test}(" in path.read_text(encoding="utf-8"), name


def texts_of_the_code() -> list[str]:
    """All texts that stand in the package, `…` for each value that is put into one."""
    texts = []
    for file in (ROOT / "kyon_pl").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


@pytest.mark.parametrize(("page", "columns"), [("docs/troubleshooting.md", 1), ("docs/zh/troubleshooting.md", 2)])
def test_quoted_messages_are_ones_that_the_code_says(page: str, columns: int) -> None:
    cells = r"\| `([^`]+)` " * columns
    quoted = [row.groups() for row in re.finditer(f"^{cells}", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)]
    assert len(quoted) > 10
    texts = texts_of_the_code()
    assert [row[-1] for row in quoted if not any(row[-1] in text for text in texts)] == []
    if columns == 2:  # the Chinese of the same message
        catalogue = [[FIELD.sub("…", text) for text in entry] for entry in read_catalogue(CATALOGUE).items()]
        assert [row for row in quoted if not any(row[1] in of and row[0] in chinese for of, chinese in catalogue)] == []
    assert not any("no such message as this" in text for text in texts)
