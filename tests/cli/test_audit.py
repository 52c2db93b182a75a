"""`make audit` is green, and red for each thing that it must find; `make build` gives the same bytes twice."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from limits import HANG_S

ROOT = Path(__file__).parents[2]
AUDIT = [str(ROOT / ".venv-audit/bin/python"), str(ROOT / "requirements/audit.py")]
LOCK = ROOT / "requirements/test.lock"
# the environment that runs the tests, and not one that make would install
OF_THIS_PYTHON = [f"BIN={Path(sys.executable).parent}", "--assume-old", ".venv/installed"]
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=HANG_S, check=False)


@pytest.fixture(scope="module", autouse=True)
def audited() -> str:
    """What `make audit` says; it installs the tools first."""
    done = run("make", "audit", f"PYTHON={sys.executable}", *OF_THIS_PYTHON)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_audit_says_what_it_compared(audited: str) -> None:
    assert "advisories of this repository: 1" in audited
    assert "licences that are not in licences.txt: 0" in audited


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_a_malicious_release_is_found(version: str, tmp_path: Path) -> None:
    planted = tmp_path / "planted.lock"
    text = re.sub(r"^lightning==\S+", f"lightning=={version}", LOCK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    planted.write_text(text, encoding="utf-8")
    done = run(*AUDIT, planted)
    assert done.returncode == 1
    assert re.search(rf"lightning +{re.escape(version)} +KYON-2026-0001", done.stdout), done.stdout


def test_a_new_advisory_is_found(tmp_path: Path) -> None:
    version = re.search(r"^tqdm==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    assert version
    affected = {"package": {"ecosystem": "PyPI", "name": "TQDM"}, "versions": [version[1]]}
    record = {"id": "PLANTED-1", "modified": "2026-01-01T00:00:00Z", "summary": "planted", "affected": [affected]}
    (tmp_path / "planted.json").write_text(json.dumps(record), encoding="utf-8")
    done = run(*AUDIT, LOCK, "--advisories", tmp_path)
    assert done.returncode == 1
    assert "PLANTED-1" in done.stdout


def test_a_licence_that_is_not_allowed_is_found(tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "planted")
    site = next((tmp_path / "planted/lib").glob("python*/site-packages"))
    (site / "planted-1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.4\nName: planted\nVersion: 1.0\nLicense-Expression: MIT AND AGPL-3.0-only\n"
    (site / "planted-1.0.dist-info/METADATA").write_text(metadata, encoding="utf-8")
    done = run(*AUDIT, LOCK, "--python", tmp_path / "planted/bin/python")
    assert done.returncode == 1
    assert "planted 1.0: MIT AND AGPL-3.0-only" in done.stdout


def test_a_workflow_that_takes_code_from_a_title_is_found(tmp_path: Path) -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert "- run: .ci/run" in text
    (tmp_path / "ci.yml").write_text(
        text.replace("- run: .ci/run", "- run: echo ${{ github.event.pull_request.title }}"), encoding="utf-8"
    )
    assert run(ROOT / ".venv-audit/bin/zizmor", "--offline", "--quiet", tmp_path).returncode != 0


def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    """In two clones, with files of another age and other permissions for new files."""
    digests = []
    for name, umask in (("first", 0o022), ("second", 0o077)):
        before = os.umask(umask)
        try:
            run("git", "clone", "--quiet", ROOT, name, cwd=tmp_path)
        finally:
            os.umask(before)
        (tmp_path / name / ".venv-audit").symlink_to(ROOT / ".venv-audit")
        done = run("make", "build", "--assume-old", ".venv-audit/installed", *OF_THIS_PYTHON, cwd=tmp_path / name)
        assert done.returncode == 0, done.stdout + done.stderr
        files = sorted((tmp_path / name / "dist").iterdir())
        assert [file.suffix for file in files] == [".whl", ".gz", ".json"]
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert digests[0] == digests[1]


def test_the_bill_of_materials_is_the_lock(tmp_path: Path) -> None:
    tool, bill_file = ROOT / ".venv-audit/bin/cyclonedx-py", tmp_path / "sbom.json"
    done = run(tool, "requirements", LOCK, "--validate", "--output-reproducible", "--output-file", bill_file)
    assert done.returncode == 0, done.stderr
    bill = json.loads(bill_file.read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    locked = re.findall(r"^([\w.-]+)==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted((one["name"], one["version"]) for one in bill["components"]) == sorted(locked)
