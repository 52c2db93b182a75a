"""What contributors and GitHub read: hooks, citation, templates; each says the same as the Makefile and the package."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import kyon_pl

ROOT = Path(__file__).parents[2]
FORMS = ["bug_report", "feature_request"]
YAML_FILES = [
    ".pre-commit-config.yaml",
    "CITATION.cff",
    *(f".github/ISSUE_TEMPLATE/{n}.yml" for n in [*FORMS, "config"]),
]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def make_commands(makefile: str, target: str) -> list[list[str]]:
    """The recipe of a target as words, variables replaced by their values."""
    variables = dict(re.findall(r"^(\w+) [?:]= (.+)$", makefile, re.MULTILINE))
    recipe = re.search(rf"^{target}:.*\n((?:\t.+\n)+)", makefile, re.MULTILINE)
    assert recipe
    commands = recipe[1]
    while re.search(r"\$\(\w+\)", commands):
        commands = re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], commands)
    return [shlex.split(line) for line in commands.splitlines()]


def hooks() -> list[dict[str, Any]]:
    return [hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]


def hook_commands(hooks: list[dict[str, Any]]) -> list[list[str]]:
    return [[*shlex.split(hook["entry"]), *hook.get("args", [])] for hook in hooks]


@pytest.mark.parametrize("name", YAML_FILES)
def test_yaml_parses(name: str) -> None:
    assert isinstance(yaml.safe_load(read(name)), dict)


def test_hooks_run_the_commands_of_make_check() -> None:
    commands = make_commands(read("Makefile"), "check")
    assert [".venv/bin/ruff", "check", "."] in commands
    assert hook_commands(hooks()) == commands


def test_a_removed_hook_is_noticed() -> None:
    commands, found = make_commands(read("Makefile"), "check"), hooks()
    for removed in range(len(found)):
        assert hook_commands(found[:removed] + found[removed + 1 :]) != commands


def test_a_command_added_to_make_check_is_noticed() -> None:
    makefile = read("Makefile").replace("\t$(BIN)/mypy\n", "\t$(BIN)/mypy\n\t$(BIN)/mypy benchmarks\n")
    assert make_commands(makefile, "check").count([".venv/bin/mypy", "benchmarks"]) == 1
    assert hook_commands(hooks()) != make_commands(makefile, "check")


def test_hooks_check_everything_and_download_nothing() -> None:
    """As make does: on the whole tree, whichever files a commit changes; the tests only before a push."""
    assert [repo["repo"] for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]] == ["local"]
    for hook in hooks():
        assert (hook["language"], hook["pass_filenames"], hook["always_run"]) == ("system", False, True)
    assert {hook["id"]: hook["stages"] for hook in hooks()} == {
        "ruff-check": ["pre-commit"],
        "ruff-format": ["pre-commit"],
        "mypy": ["pre-commit"],
        "pytest": ["pre-push"],
    }


def test_citation_has_the_version_and_license_of_the_package() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation.keys() >= {"cff-version", "message", "title", "authors", "abstract"}
    project = read("pyproject.toml").partition("[project]")[2].partition("\n[")[0]
    for key in ("version", "license"):
        assert re.findall(rf'^{key} = "(.+)"', project, re.MULTILINE) == [str(citation[key])]
    assert citation["version"] == kyon_pl.__version__
    assert citation["title"] == kyon_pl.__name__


@pytest.mark.parametrize("form", FORMS)
def test_issue_forms_are_complete(form: str) -> None:
    """The keys without which GitHub shows no form, and ids that are unique, as it demands."""
    found = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{form}.yml"))
    assert found.keys() >= {"name", "description", "body"}
    questions = [part for part in found["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in questions}) == len(questions)
    assert all(part["attributes"]["label"] for part in questions)


def test_a_bug_report_asks_for_command_doctor_and_log() -> None:
    body = yaml.safe_load(read(".github/ISSUE_TEMPLATE/bug_report.yml"))["body"]
    assert {part["id"] for part in body if part.get("validations", {}).get("required")} >= {"command", "doctor", "log"}


@pytest.mark.parametrize("asked", ["make check", "fails without the change", "kyon-pl doctor", "run.log", "command"])
def test_a_pull_request_is_asked_for(asked: str) -> None:
    assert asked in read(".github/PULL_REQUEST_TEMPLATE.md")
