"""`make site`: the documentation as pages without a warning, a dead link, or a request to another host."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESOURCE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\s(?:src|href)=\"(?:https?:)?//")


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    installed = subprocess.run(
        ["make", "--silent", "--directory", ROOT, f"PYTHON={sys.executable}", ".venv-site/installed"],
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stderr[-2000:]
    command = [str(ROOT / ".venv-site/bin/mkdocs"), "build", "--config-file", str(ROOT / "mkdocs.yml"), "--site-dir"]
    built = subprocess.run([*command, str(tmp_path / "site")], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    assert "WARNING -" not in built.stderr
    pages = {
        page.relative_to(tmp_path / "site").as_posix(): page.read_text("utf-8") for page in tmp_path.rglob("*.html")
    }
    assert {"index.html", "training.html", "zh/index.html", "changelog.html"} <= pages.keys()
    assert (tmp_path / "site/examples/train.py").is_file()
    assert RESOURCE.search('<script async src="https://example.com/a.js">')
    assert [name for name, text in pages.items() if RESOURCE.search(text)] == []
    reference = pages["reference.html"]
    assert all(f'id="kyon_pl.{name}"' in reference for name in ("ChatGLM2LoRA", "DialogueDataModule"))
