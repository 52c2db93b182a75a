"""The lock files are what constraints.txt pins, and each of their lines has hashes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib")
ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


def pins(text: str) -> dict[str, str]:
    """Versions by name, of a constraints file or a lock file."""
    found = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def constraints() -> dict[str, str]:
    return pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))


def test_the_lock_has_the_constraints_and_nothing_else() -> None:
    text = (ROOT / "requirements/test.lock").read_text(encoding="utf-8")
    torch = pins((ROOT / "requirements/torch-cpu.lock").read_text(encoding="utf-8"))
    assert pins(text) | {"torch": torch["torch"].removesuffix("+cpu")} == constraints()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_each_package_of_a_lock_has_hashes_and_the_version_of_the_constraints(lock: Path) -> None:
    blocks = re.split(r"^(?=\w)", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(blocks) > 15 or lock.stem == "torch-cpu"
    assert [block for block in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}$", block, re.MULTILINE)] == []
    assert not re.search(r"https?:|--(extra-)?index-url|--find-links", "".join(blocks))
    found = {name: version.removesuffix("+cpu") for name, version in pins("".join(blocks)).items()}
    assert constraints() | found == found | constraints()


def test_what_the_project_and_its_build_need_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    wanted = [
        *project["project"]["dependencies"],
        *project["build-system"]["requires"],
        *extras["test"],
        *extras["dev"],
    ]
    known = constraints()
    for requirement in map(Requirement, wanted):
        if canonicalize_name(requirement.name) == "kyon-pl":
            continue
        version = known.get(canonicalize_name(requirement.name))
        assert version, requirement
        assert requirement.specifier.contains(version, prereleases=True), (requirement, version)


def test_the_malicious_releases_are_excluded() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (lightning,) = [one for one in map(Requirement, project["project"]["dependencies"]) if one.name == "lightning"]
    assert not {"2.6.2", "2.6.3"} & set(lightning.specifier.filter(["2.6.1", "2.6.2", "2.6.3", "2.6.4"]))
