"""Makes the artefacts of a version that test_legacy.py reads with all later ones.

    git worktree add ../checkout COMMIT
    .venv/bin/python tests/legacy/make_artefacts.py ../checkout

The Python that runs this script must have the dependencies of that version. The script runs `kyon_pl.cli.main` of the
checkout in a temporary folder, with run.yaml:

1. an undisturbed run: its last adapter is `finished/step=60`;
2. a run that is killed when it begins to save step 54: its folder is `lightning_logs/version_0`, and its newest whole
   checkpoint is step 45, in the middle of the third epoch;
3. the same command on a copy of that folder: it ends in the adapter of the undisturbed run, byte for byte, or the
   script stops;
4. `validate`, `chat`, `merge` and `convert-adapter`: what they give is recorded in `expected.json`.

The result is the folder `tests/legacy/COMMIT`, the short hash of the checkout. It names no absolute path and no host.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from recorded import (
    CHECKPOINT,
    FINISHED,
    FIT,
    FORMATS,
    QUESTIONS,
    RUN,
    VALIDATE,
    chat_words,
    convert_words,
    hardware,
    merge_words,
    printed_loss,
    sha256_of_file,
    sha256_of_tensors,
)

HERE = Path(__file__).parent
LAST, KILLED_AT = "step=60", ".step=54.writing"  # a checkpoint's folder is made beside its place
PACKAGES = ("lightning", "transformers", "peft", "safetensors")
# TensorBoard writes the host's name into the name of its file; Python tells an audit hook of every new folder
START = """
import os, signal, socket, sys
socket.gethostname = lambda: "localhost"
place, *words = sys.argv[1:]

def kill(event, args):
    if place and event == "os.mkdir" and str(args[0]).endswith(place):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
from kyon_pl.cli import main
main(words)
"""


def make(checkout: Path) -> None:
    """Make the artefacts of a checkout.

    Args:
        checkout: of the commit, as `git worktree add` makes it.
    """
    commit = git(checkout, "rev-parse", "--short=7", "HEAD")
    assert not git(checkout, "status", "--porcelain"), f"{checkout} has changes"
    output = HERE / commit
    with TemporaryDirectory() as name:
        temporary = Path(name)
        undisturbed, work = temporary / "undisturbed", temporary / "work"
        for folder in (undisturbed, work):
            folder.mkdir()
            shutil.copy(HERE / "run.yaml", folder)
        run(checkout, undisturbed, FIT)
        run(checkout, work, FIT, kill_at=KILLED_AT)
        shutil.copytree(undisturbed / RUN / "checkpoints" / LAST, work / FINISHED)
        check_names_nothing(work, [str(temporary), str(checkout.resolve()), str(Path.home())])
        shutil.copytree(work, output)
        (output / "expected.json").write_text(
            json.dumps(expected(checkout, work, commit), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def expected(checkout: Path, work: Path, commit: str) -> dict[str, object]:
    """What the version makes of its own artefacts; goes on with the run in `work`."""
    loss = printed_loss(run(checkout, work, VALIDATE))
    replies = {
        question: json.loads(run(checkout, work, chat_words(FINISHED, question)).splitlines()[-1])["reply"]
        for question in QUESTIONS
    }
    for format in FORMATS:
        run(checkout, work, merge_words(format, f"merged-{format}"))
    run(checkout, work, convert_words("converted"))
    run(checkout, work, FIT)
    adapter = "adapter_model.safetensors"
    resumed = sha256_of_file(work / RUN / "checkpoints" / LAST / adapter)
    assert resumed == sha256_of_file(work / FINISHED / adapter), "the resumed run ended in another adapter"
    assert not (work / RUN).with_name("version_1").exists(), "the run was not gone on with"
    return {
        "commit": commit,
        "hardware": hardware(),
        "packages": {name: version(name) for name in PACKAGES},
        "resumed_from": Path(CHECKPOINT).name,
        "finished_at_step": int(LAST.removeprefix("step=")),
        "adapter_sha256": resumed,
        "validation_loss": loss,
        "replies": replies,
        "merged_tensors_sha256": {format: sha256_of_tensors(work / f"merged-{format}") for format in FORMATS},
        "converted_tensors_sha256": sha256_of_tensors(work / "converted"),
    }


def run(checkout: Path, folder: Path, words: list[str], kill_at: str = "") -> str:
    """Run a command of the checkout's kyon_pl in a folder; what it prints on standard output."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout.resolve()),
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(folder.parent / "hub"),
    }
    command = [sys.executable, "-c", START, kill_at, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (-9 if kill_at else 0), f"{words}: {done.returncode}\n{done.stderr}"
    return done.stdout


def check_names_nothing(folder: Path, paths: list[str]) -> None:
    """Stop where a file holds one of these paths."""
    for file in (path for path in folder.rglob("*") if path.is_file()):
        found = [path for path in paths if path.encode() in file.read_bytes()]
        assert not found, f"{file} names {found}"


def git(checkout: Path, *words: str) -> str:
    """What git says."""
    done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
