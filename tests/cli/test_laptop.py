"""The commands for a laptop, of the README and of docs/laptop.md, in their order: llama.cpp serves what they make."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from limits import HANG_S
from llama_cpp import LlamaServer
from web_host import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.split("\n## On a laptop\n")[1].split("\n## ")[0]
TEXTS = {"README.md": SECTION, "docs/laptop.md": (ROOT / "docs/laptop.md").read_text(encoding="utf-8")}

NOT_RUN = ("ollama", "llama-quantize")  # docs/laptop.md says so
EXAMPLE = "http://127.0.0.1:8080"
SUBSTITUTIONS = [
    (r"THUDM/chatglm2-6b", "demo"),
    (r"^kyon-pl chat (.*)$", r"kyon-pl chat \1 -p 'Is it far?' --max_new_tokens 8"),  # nobody is there to type
    (r"^kyon-pl ", f"{sys.executable} -m kyon_pl "),
]


def commands(text: str) -> list[str]:
    return re.findall(r"^\$ (.+)$", text, re.MULTILINE)


@pytest.fixture
def folder(demo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the reader has: a run, and the role that docs/data.md makes by hand."""
    shutil.copytree(demo_run, tmp_path / "lightning_logs/version_0")
    monkeypatch.chdir(tmp_path)
    for command in commands((ROOT / "docs/data.md").read_text(encoding="utf-8")):
        if command.startswith(("mkdir", "echo")):
            subprocess.run(command, shell=True, check=True)
    return tmp_path


class Laptop:
    """Runs commands.

    Attributes:
        replies: what `chat` said.
        pages: the addresses of `web`.
    """

    def __init__(self) -> None:
        self.replies: list[str] = []
        self.pages: list[str] = []
        self._servers = ExitStack()
        self._url = EXAMPLE

    def __enter__(self) -> Laptop:
        return self

    def __exit__(self, *exception: object) -> None:
        self._servers.close()

    def run(self, command: str) -> None:
        program, *words = shlex.split(command)
        if program in NOT_RUN:
            return
        if program == "llama-server":
            self._serve(words)
            return
        for pattern, replacement in [*SUBSTITUTIONS, (EXAMPLE, self._url)]:
            command = re.sub(pattern, replacement, command)
        if words[0] == "web":
            self._open_page(shlex.split(command))
            return
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=HANG_S)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
        if words[0] == "chat":
            self.replies.append(done.stdout)

    def _serve(self, words: list[str]) -> None:
        """Start the server, in place of the one before."""
        options = dict(zip(words[0:-1:2], words[1::2], strict=False))
        assert options["-c"] == "4096"
        self._servers.close()
        loras = [Path(options["--lora"])] if "--lora" in options else []
        self._url = self._servers.enter_context(LlamaServer(Path(options["-m"]), loras, context=4096)).url

    def _open_page(self, words: list[str]) -> None:
        """Start the page, and end it as its reader would."""
        words += ["--port", str(free_port())]
        page = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert page.stderr
        said = [*lines_until(page.stderr, "Ctrl-C ends it")]
        page.send_signal(signal.SIGINT)
        page.communicate(timeout=HANG_S)
        assert "Ctrl-C ends it" in said[-1], said
        self.pages.append(said[-1])


def lines_until(stream: Iterator[str], last: str) -> Iterator[str]:
    for line in stream:
        yield line
        if last in line:
            return


@pytest.mark.slow
@pytest.mark.parametrize(("text", "replies", "pages"), [("README.md", 1, 0), ("docs/laptop.md", 2, 1)])
def test_each_command_runs(text: str, replies: int, pages: int, folder: Path) -> None:
    with Laptop() as laptop:
        for command in commands(TEXTS[text]):
            laptop.run(command)
    assert len(laptop.replies) == replies
    assert all(reply.strip() for reply in laptop.replies)
    assert len(laptop.pages) == pages
    print(*laptop.replies, *laptop.pages, sep="\n")


def test_what_is_not_run_is_said() -> None:
    """In docs/laptop.md; and the README has nothing of it."""
    said = TEXTS["docs/laptop.md"].split("\n## Not run\n")[1].lower()
    used = {command.split()[0] for command in commands(TEXTS["docs/laptop.md"])}
    assert used == {"kyon-pl", "llama-server", *NOT_RUN}
    assert all(f"`{program}`" in said for program in NOT_RUN)
    assert {command.split()[0] for command in commands(SECTION)} == {"kyon-pl", "llama-server"}
