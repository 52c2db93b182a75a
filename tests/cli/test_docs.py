"""What stands in docs/ is what the code says."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

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


@pytest.mark.skipif(
    any(version(name) != PINNED[name] for name in ("lightning", "peft")),
    reason="the meaning of the Trainer's and of LoRA's settings is in the words of the pinned versions",
)
def test_configuration_is_generated(configuration: ModuleType) -> None:
    written = configuration.PAGE.read_text(encoding="utf-8")
    assert configuration.page() == written, "docs/configuration.md is not what the code says: run make docs"


def test_every_setting_of_ours_has_a_meaning(configuration: ModuleType) -> None:
    """One line each, with something in the last column."""
    rows = [line for line in configuration.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []
    assert {len(row) < 700 for row in rows} == {True}
