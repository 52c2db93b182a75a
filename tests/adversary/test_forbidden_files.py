"""What a user may not read or write ends in one paragraph and status 2, in every command that reads it.

root may read everything: for root, the commands run in a child that has given up its capabilities.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from adapters_made import written_adapter
from forks import drop_capabilities

from kyon_pl.cli import main
from kyon_pl.demo import BASE
from kyon_pl.evaluation.run_folder import read_run_folders
from kyon_pl.export.merge import merge
from kyon_pl.runs.checkpoint_io import read_checkpoint

LEGACY = Path(__file__).parents[1] / "legacy/37c419d"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="capset is Linux's")
RUN = "lightning_logs/version_0"
STEP = f"{RUN}/checkpoints/step=45"
CHAT = ["chat", "-p", "a", "--max_new_tokens", "1", "--which", "last", "--adapter"]
PUSH = ["push", "--repo_id", "a/b", "--dry-run", "--adapter"]

# what is forbidden -> the commands that read it; all in the folder of the fixture
CASES: dict[str, list[list[str]]] = {
    "run.yaml": [["fit", "--config", "run.yaml"], ["preview", "--config", "run.yaml"]],
    "adapter/adapter_config.json": [
        [*CHAT, "adapter"],
        [*PUSH, "adapter"],
        ["merge", "--adapter", "adapter", "--output", "out/m"],
        ["convert-adapter", "--adapter", "adapter", "--output", "out/c"],
    ],
    "adapter/adapter_model.safetensors": [[*CHAT, "adapter"], [*PUSH, "adapter"]],
    "adapter/config.yaml": [[*CHAT, "adapter"], [*PUSH, "adapter"]],
    "adapter": [[*CHAT, "adapter"], [*PUSH, "adapter"]],
    f"{STEP}/COMPLETE": [[*CHAT, f"{STEP}.ckpt"], [*PUSH, STEP]],
    f"{STEP}/adapter_model.safetensors": [[*CHAT, f"{STEP}.ckpt"], [*CHAT, STEP], [*PUSH, STEP]],
    f"{RUN}/checkpoints": [[*CHAT, RUN]],
    f"{RUN}": [[*CHAT, RUN], [*PUSH, STEP]],
    "base/config.json": [[*CHAT, "adapter", "--base", "base"]],
    "base/tokenizer.model": [[*CHAT, "adapter", "--base", "base"]],
    "base/tokenizer_config.json": [[*CHAT, "adapter", "--base", "base"]],
    "base/model.safetensors": [[*CHAT, "adapter", "--base", "base"]],
    "base": [[*CHAT, "adapter", "--base", "base"]],
    "glm/tokenizer.json": [[*CHAT, "glm"]],
    "glm/model.safetensors": [[*CHAT, "glm"]],
    "Bo/system_prompt.txt": [
        ["build-data", "--characters", "Bo", "--output", "out/rows.jsonl"],
        [*CHAT, "adapter", "--character", "Bo"],
    ],
    "Bo": [["build-data", "--characters", "Bo", "--output", "out/rows.jsonl"], [*CHAT, "adapter", "--character", "Bo"]],
}
# a report of what can be read, which names what cannot
REPORTED = ["run.log", "run.json", "config.yaml", "held_out_replies.jsonl"]
LOCKED = [
    ["merge", "--adapter", "adapter", "--output", "locked/m"],
    ["convert-adapter", "--adapter", "adapter", "--output", "locked/c"],
    ["build-data", "--characters", "Bo", "--output", "locked/rows.jsonl"],
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forbidden")
    shutil.copytree(LEGACY, folder, dirs_exist_ok=True)
    shutil.copytree(BASE, folder / "base")
    written_adapter("fused", folder / "adapter")
    merge(folder / "glm", str(folder / "adapter"), format="glm")
    (folder / "adapter/config.yaml").write_text("data: {template: raw}\n")
    (folder / "Bo/dialogues").mkdir(parents=True)
    (folder / "Bo/system_prompt.txt").write_text("You are Bo.")
    (folder / "Bo/dialogues/one.jsonl").write_text('{"query": "a", "answer": "b"}\n')
    (folder / "out").mkdir()
    (folder / "locked").mkdir(mode=0o555)
    return folder


def unprivileged(folder: Path, work: Callable[[], object]) -> tuple[int, str]:
    """Run something in a child that is held to the modes of files, root's too.

    Returns:
        Its status (1 for a traceback), and what it wrote to standard error.
    """
    said = folder / "out" / "said"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with said.open("wb") as stream:
                os.dup2(stream.fileno(), 2)
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            os.chdir(folder)
            drop_capabilities()
            work()
            status = 0
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = said.read_text(encoding="utf-8", errors="replace")
    said.unlink()
    return status, text


@pytest.mark.parametrize("forbidden", CASES)
def test_what_may_not_be_read_is_said(forbidden: str, place: Path) -> None:
    path = place / forbidden
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        for words in CASES[forbidden]:
            status, said = unprivileged(place, lambda words=words: main(words))  # type: ignore[misc]
            assert status == 2, f"{words}: {said}"
            assert "Traceback" not in said
            assert path.name in said.splitlines()[-1] or forbidden == f"{RUN}/checkpoints", said
            assert [*(place / "out").iterdir()] == []
    finally:
        path.chmod(mode)


@pytest.mark.parametrize("name", REPORTED)
def test_a_report_names_what_may_not_be_read(name: str, place: Path) -> None:
    path = place / RUN / name
    path.chmod(0)
    try:
        status, said = unprivileged(
            place, lambda: print(*read_run_folders([Path(RUN)])[0].missing, sep="\n", file=sys.stderr)
        )
        assert status == 0, said
        assert f"{name}: it cannot be read (Permission denied)" in said.splitlines()
    finally:
        path.chmod(0o644)


def test_a_checkpoint_that_may_not_be_read_is_said(place: Path) -> None:
    path = place / f"{STEP}.ckpt"
    path.chmod(0)
    try:
        status, said = unprivileged(place, lambda: read_checkpoint(path))
        assert "kyon_pl.errors.CheckpointError: checkpoint" in said.splitlines()[-1], (status, said)
    finally:
        path.chmod(0o644)


@pytest.mark.parametrize("words", LOCKED, ids=lambda words: words[0])
def test_what_may_not_be_written_is_said(words: list[str], place: Path) -> None:
    status, said = unprivileged(place, lambda: main(words))
    assert status == 2, said
    assert "locked" in said.splitlines()[-1]
