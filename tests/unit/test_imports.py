"""Who may import whom, as data; and what answers without torch."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from imported import OPTIONAL, imported_by

PACKAGE = Path(__file__).parents[2] / "kyon_pl"

# from the door down: a room imports only what stands below it
ROOMS = [
    "cli", "judge", "chat", "roles", "publish", "doctor", "preview", "training", "export", "data", "evaluation", "runs",
    "lora", "demo", "chatglm2", "vocabulary", "hub", "batch", "logs", "imports", "outputs", "locks", "disk", "files",
    "language", "errors",
]  # fmt: skip

# a part of the package, a room or a module -> what it never imports besides
FORBIDDEN = {
    "judge": ["lightning", "kyon_pl.training"],
    "chat": ["lightning", "kyon_pl.training"],
    "roles": ["lightning", "kyon_pl.training"],
    "publish": ["lightning", "kyon_pl.training"],
    "preview": ["lightning", "kyon_pl.training"],
    "training": ["kyon_pl.data", "kyon_pl.export"],  # data and training meet in batch.py
    "export": ["lightning", "kyon_pl.data"],
    "evaluation": ["lightning", "kyon_pl.data"],
    "data": ["kyon_pl.chatglm2.modeling", "kyon_pl.lora", "kyon_pl.runs"],
    "lora": ["lightning"],
    "runs/adapters": ["lightning"],
    "demo": ["lightning", "kyon_pl.lora"],
    "chatglm2": ["lightning", "peft"],
    "vocabulary": ["lightning", "torch", "transformers"],
    "hub": ["lightning", "torch", "transformers"],
    "errors": ["kyon_pl.", "torch", "lightning", "transformers"],
}

# files that may do what their room may not, and why
EXCEPTIONS = {
    "data/__init__.py": ["kyon_pl.roles.characters"],  # names of the original script, imported on first use
    "data/datamodule.py": ["lightning"],
}


def contributing_rows(heading: str) -> list[list[str]]:
    contributing = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = contributing.partition(heading)[2].partition("\n\n")[0]
    return [re.findall(r"`([^`]+)`", line) for line in table.splitlines() if line.startswith("| `")]


def test_contributing_has_these_tables() -> None:
    assert [row[0] for row in contributing_rows("| room |")] == ROOMS
    assert {row[0]: row[1:] for row in contributing_rows("| never imports |")} == {
        part: [name.removesuffix(".") for name in names] for part, names in FORBIDDEN.items()
    }


def test_every_part_of_the_package_is_in_the_order() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__", "__main__"} == set(ROOMS)


def imported_names(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def starts_with(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(prefix if prefix.endswith(".") else f"{prefix}.")


def forbidden_imports(file: Path, package: Path = PACKAGE) -> list[str]:
    """What a file imports that its part of the package may not."""
    place = file.relative_to(package)
    room = place.parts[0].removesuffix(".py")
    above = [f"kyon_pl.{other}" for other in ROOMS[: ROOMS.index(room)]]
    parts = [part for part in FORBIDDEN if part == room or place.as_posix().removesuffix(".py") == part]
    forbidden = [*above, *(name for part in parts for name in FORBIDDEN[part])]
    allowed = EXCEPTIONS.get(place.as_posix(), [])
    return [
        f"{place} imports {name}"
        for name in sorted(imported_names(file))
        if any(starts_with(name, prefix) for prefix in forbidden)
        and not any(starts_with(name, prefix) for prefix in allowed)
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_stands_below(room: str) -> None:
    single = PACKAGE / f"{room}.py"
    files = [single] if single.exists() else sorted((PACKAGE / room).rglob("*.py"))
    assert [line for file in files for line in forbidden_imports(file)] == []


@pytest.mark.parametrize(
    ("place", "line", "seen"),
    [
        ("lora/adapter.py", "from kyon_pl.training import module", True),
        ("lora/adapter.py", "def f():\n    import lightning.pytorch", True),
        ("errors.py", "from kyon_pl.disk import sync", True),
        ("runs/adapters.py", "from lightning.pytorch import Trainer", True),
        ("runs/resume.py", "from lightning.pytorch import Trainer", False),
        ("training/module.py", "from kyon_pl.data import render", True),
        ("data/datamodule.py", "from lightning.pytorch import Trainer", False),
        ("chat/web/app.py", "from kyon_pl.roles.role import Role", False),
    ],
)
def test_the_check_sees_an_import_the_wrong_way(place: str, line: str, seen: bool, tmp_path: Path) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(line + "\n", encoding="utf-8")
    assert bool(forbidden_imports(file, tmp_path)) == seen


def test_modules_import_each_other_in_no_circle() -> None:
    assert circles({name: top_level_imports(file) for name, file in modules().items()}) == []


def test_the_check_sees_a_circle() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def modules() -> dict[str, Path]:
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = ("kyon_pl", *file.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def top_level_imports(file: Path) -> set[str]:
    """The modules of the package that are imported when this one is; not under TYPE_CHECKING, not in functions."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("kyon_pl"):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names & modules().keys()


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        rest = [start]
        while rest:
            for name in imports.get(rest.pop(), set()) - seen:
                seen.add(name)
                rest.append(name)
        return seen

    reach = {name: reached(name) for name in imports}
    found = {tuple(sorted(o for o in reach[name] if name in reach.get(o, set()))) for name in imports}
    return sorted([*members] for members in found if members)


HEAVY = ("torch", "lightning", "transformers", "peft", "numpy", "jsonargparse")


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = f"import sys, kyon_pl; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["fit", "--help"], 0),
        (["fit", "--help", "all"], 0),
        (["chat", "-h"], 0),
        (["doctor", "--help"], 0),
        (["fitt"], 2),
        (["fit", "--config", "demo", "--trainer.max_epoch", "3"], 2),
        (["fit", "--config", "{folder}/slip.yaml"], 2),
        (["chat", "--adaptor", "x"], 2),
    ],
)
def test_help_and_slips_import_nothing_heavy(words: list[str], status: int, tmp_path: Path) -> None:
    (tmp_path / "slip.yaml").write_text("trainer:\n  max_epoch: 3\n", encoding="utf-8")
    assert imported_by([word.format(folder=tmp_path) for word in words], *HEAVY, status=status) == []


@pytest.mark.parametrize(
    ("words", "imported"),
    [
        (["preview", "--config", "demo", "--rows", "0"], ["scipy"]),  # `datasets` imports it to patch scipy.io
        (["doctor", "--config", "demo"], ["bitsandbytes", "scipy"]),  # `import peft` imports bitsandbytes
        (["build-data", "--characters", "{folder}/Bo", "--output", "{folder}/rows.jsonl"], []),
    ],
)
def test_commands_that_do_not_train_import_no_lightning(words: list[str], imported: list[str], tmp_path: Path) -> None:
    (tmp_path / "Bo/dialogues").mkdir(parents=True)
    (tmp_path / "Bo/system_prompt.txt").write_text("You are Bo.", encoding="utf-8")
    turns = {"dialogue": [{"role": "Al", "text": "Hello?"}, {"role": "Bo", "text": "Hello, Al."}]}
    (tmp_path / "Bo/dialogues/one.jsonl").write_text(json.dumps(turns) + "\n", encoding="utf-8")
    assert set(imported_by([word.format(folder=tmp_path) for word in words], *OPTIONAL)) <= set(imported)


@pytest.mark.parametrize(
    ("given", "taken"),
    [({}, "PASSIVE"), pytest.param({"OMP_WAIT_POLICY": "active"}, "ACTIVE", marks=pytest.mark.slow)],
)
def test_threads_wait_without_spinning_unless_told_otherwise(given: dict[str, str], taken: str) -> None:
    """As OpenMP itself says it: on a busy machine, spinning makes the demo's steps ten times slower."""
    settings = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-m", "kyon_pl", "preview", "--rows", "-1"]
    run = subprocess.run(
        command, env=settings | given | {"OMP_DISPLAY_ENV": "true"}, capture_output=True, text=True, check=False
    )
    assert f"OMP_WAIT_POLICY = '{taken}'" in run.stderr
