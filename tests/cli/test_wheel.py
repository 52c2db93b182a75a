"""What is built runs where there is no repository."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
from limits import HANG_S

ROOT = Path(__file__).parents[2]
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "4", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "lightning_logs")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, source], check=True, timeout=HANG_S)
    return folder


@pytest.fixture(scope="module")
def kyon_pl(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in an environment of its own, which has the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *dist.glob("*.whl")], check=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # the .pth files in that folder are not read, and so the repository is not seen
    Path(site.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder / "bin/kyon-pl"


@pytest.mark.slow
def test_sdist_has_what_is_needed_to_build(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "configs/overlay/ddp.yaml"} <= names


@pytest.mark.slow
def test_the_demo_runs_without_the_repository(kyon_pl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def run(*words: str) -> str:
        done = subprocess.run([kyon_pl, *words], capture_output=True, text=True, timeout=HANG_S)
        assert done.returncode == 0, f"{words}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
        return done.stdout

    run("fit", "--config", "demo", *SHORT)
    log = Path("lightning_logs/version_0/run.log").read_text(encoding="utf-8")
    assert f"config: {kyon_pl.parents[1]}/" in log  # the config is the wheel's, and the code beside it
    reply = json.loads(run("chat", "-p", "钟楼里是谁在忙呀？", "--max_new_tokens", "16", "--json"))
    assert reply["reply"]
    assert "this run can work" in run("doctor", "--config", "configs/demo.yaml")
    run("fit", "--config", "lora", "--config", "overlay/ddp", "--print_config")
    monkeypatch.setenv("KYON_PL_LANG", "zh")
    assert "可以进行该训练" in run("doctor", "--config", "configs/demo.yaml")
