"""examples/character.ipynb: its cells in their order, with the substitutions that are named here and no others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from limits import HANG_S

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "examples/character.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]

SUBSTITUTIONS = [
    (r"^%pip install --quiet kyon-pl$", "!kyon-pl --version"),  # the tests run in an environment that has it
    (r"^!kyon-pl preview ", "!kyon-pl preview --model.base demo "),
    (
        r"^!kyon-pl fit --config character ",
        "!kyon-pl fit --config character --model.base demo --trainer.accelerator cpu --trainer.precision 32-true"
        " --trainer.max_epochs 2 ",
    ),
    (r"^!kyon-pl chat ", "!kyon-pl chat --max_new_tokens 32 "),
    (r"^!kyon-pl ", f"!{sys.executable} -m kyon_pl "),
]


def run_cell(source: str, variables: dict[str, Any]) -> str:
    """Run a cell as IPython does, but fail where a command fails.

    Returns:
        What its commands printed.

    Raises:
        AssertionError: a command failed.
    """
    first, _, rest = source.partition("\n")
    if first.startswith("%%writefile "):
        Path(first.removeprefix("%%writefile ").format_map(variables)).write_text(f"{rest}\n", encoding="utf-8")
        return ""
    if first[0] not in "!%":
        exec(source, variables)
        return ""
    return "".join(run_command(line, variables) for line in source.splitlines())


def run_command(line: str, variables: dict[str, Any]) -> str:
    for pattern, replacement in SUBSTITUTIONS:
        line = re.sub(pattern, replacement, line)
    assert line[0] == "!", f"{line}: only commands are run here"
    command = line[1:].format_map(variables)
    run = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=HANG_S)
    assert run.returncode == 0, f"{command}\n{run.stdout[-1000:]}{run.stderr[-2000:]}"
    return run.stdout


def test_a_command_that_fails_fails_its_cell() -> None:
    with pytest.raises(AssertionError, match="No such file"):
        run_cell("!echo {NAME}\n!cat {NAME}", {"NAME": "nothing.txt"})


def test_the_notebook_is_kept_without_results() -> None:
    assert all(cell.get("outputs", []) == [] for cell in NOTEBOOK["cells"])
    titles = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown"]
    for text in titles:
        heading, *paragraphs = text.split("\n\n")
        assert " · " in heading
        assert [bool(re.search("[一-鿿]", paragraph)) for paragraph in paragraphs] == [True, False]


@pytest.mark.slow
def test_each_cell_runs_up_to_a_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    variables: dict[str, Any] = {}
    printed = [run_cell(source, variables) for source in CODE]
    assert [role.name for role in Path("roles").iterdir()] == [variables["NAME"]]
    assert f"⟦▁{variables['NAME']}:" in printed[-3]
    print(printed[-1])
    assert printed[-1].strip()
