"""Who may import whom, as data; and what answers without torch."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kyon_pl"

# a part of the package -> what it never imports
FORBIDDEN = {
    "errors": ["kyon_pl.", "torch", "lightning", "transformers"],
    "data": ["kyon_pl.chatglm2.modeling", "kyon_pl.lora", "kyon_pl.training", "kyon_pl.chat."],
    "chatglm2": ["lightning", "kyon_pl.data", "kyon_pl.lora", "kyon_pl.training"],
    "lora": ["lightning", "kyon_pl.data", "kyon_pl.training"],
    "training": ["kyon_pl.data", "kyon_pl.chat."],
    "chat": ["lightning", "kyon_pl.training"],
    "evaluation": ["lightning", "kyon_pl.data", "kyon_pl.training"],
    "adapters": ["lightning", "kyon_pl.training"],
    "marker": ["lightning", "kyon_pl.", "torch"],
}


def test_contributing_has_this_table() -> None:
    contributing = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = contributing.partition("| never imports |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(FORBIDDEN)


def imported_names(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def violations(part: str, files: list[Path]) -> list[str]:
    return [
        f"{file.relative_to(PACKAGE)} imports {name}"
        for file in files
        for name in sorted(imported_names(file))
        for forbidden in FORBIDDEN[part]
        if f"{name}.".startswith(forbidden if forbidden.endswith(".") else f"{forbidden}.")
    ]


def files_of(part: str) -> list[Path]:
    return [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else sorted((PACKAGE / part).rglob("*.py"))


@pytest.mark.parametrize("part", FORBIDDEN)
def test_parts_import_only_what_they_may(part: str) -> None:
    assert violations(part, files_of(part)) == []


def test_the_check_sees_a_violation(tmp_path: Path) -> None:
    file = PACKAGE / "errors.py"
    assert "kyon_pl." in FORBIDDEN["errors"]
    assert violations("lora", [PACKAGE / "run.py"])
    assert not violations("errors", [file])


@pytest.mark.parametrize("words", [["-m", "kyon_pl", "--help"], ["-c", "import kyon_pl"]])
def test_answers_at_once(words: list[str]) -> None:
    """Under 0.7 s of a processor, best of three, since machines are shared; torch is the reason it would not be."""
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        seconds.append(spent)
    assert 0 < min(seconds) < 0.7


def test_help_does_not_import_torch() -> None:
    code = "import sys, kyon_pl.cli as c; c.main(['--help']); print('torch' in sys.modules, 'lightning' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.splitlines()[-1] == "False False"


@pytest.mark.parametrize(
    ("given", "taken"),
    [({}, "PASSIVE"), pytest.param({"OMP_WAIT_POLICY": "active"}, "ACTIVE", marks=pytest.mark.slow)],
)
def test_threads_wait_without_spinning_unless_told_otherwise(given: dict[str, str], taken: str) -> None:
    """As OpenMP itself says it: on a busy machine, spinning makes the demo's steps ten times slower."""
    settings = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-m", "kyon_pl", "preview", "--help"]
    run = subprocess.run(
        command, env=settings | given | {"OMP_DISPLAY_ENV": "true"}, capture_output=True, text=True, check=True
    )
    assert f"OMP_WAIT_POLICY = '{taken}'" in run.stderr
