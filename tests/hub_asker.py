"""Asks `kyon_pl.hub.download` in a process of its own, as huggingface_hub reads its environment when it is imported.

Every process costs half a second, and one more where `datasets` is imported, so each takes several questions.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

from hub_server import HubServer, hub_environment
from limits import HANG_S

TOKEN = "hf_0123456789secret"
ASK = """
import json, sys, traceback
from kyon_pl.demo import fetch_base_config
from kyon_pl.hub import download as hub
from kyon_pl.hub import errors as hub_errors
from kyon_pl.errors import KyonError
from kyon_pl.logs import set_up_logging

def load(repo, revision):
    from datasets import load_dataset  # as kyon_pl.data.reading.sources does, whose import takes seconds
    return len(hub.from_hub(lambda: load_dataset(repo, revision=revision, split="train"), repo, "dataset", revision))

def fetch(repo, revision):
    return str(hub.fetch_model(repo, revision, patterns=[*hub.MODEL_FILES, *hub.TOKENIZER_FILES]))

def adapter(repo, revision):
    return str(hub.fetch_model(repo, revision, patterns=hub.ADAPTER_FILES))

def explain(repo, revision):
    dropped = ConnectionError(f"Couldn't reach '{repo}' on the Hub")
    raise hub_errors.explain_hub_error(dropped, repo, "dataset", revision)

set_up_logging()
questions, hub.RETRY_WAITS_SECONDS = json.loads(sys.argv[1])
ways = {"fetch": fetch, "load": load, "adapter": adapter, "explain": explain}
ways["config"] = lambda *at: str(fetch_base_config(*at))
for way, repo, revision in questions:
    try:
        print(json.dumps(["ok", ways[way](repo, revision)]))
    except KyonError as error:
        traceback.print_exc()
        print(json.dumps([type(error).__name__, str(error)]))
"""


Question = tuple[str, str, "str | None"]


class Asker:
    """Asks `kyon_pl.hub.download` in a process of its own; nothing that it prints may hold the token.

    Attributes:
        printed: all that the last process printed.
        waits: seconds before each new try.
    """

    def __init__(self, hub: HubServer, home: Path) -> None:
        self.hub, self.home, self.printed, self.waits = hub, home, "", (0.01, 0.01, 0.01)

    def __call__(self, *questions: Question, token: str | None = None, **env: str) -> list[list[str]]:
        done = subprocess.run(self._command(*questions), **self._streams(token, env), text=True, timeout=HANG_S)
        return self._answers(done.returncode, done.stdout, done.stderr)

    def on_a_terminal(self, *questions: Question) -> list[list[str]]:
        """The same with standard error on a terminal, where progress bars are drawn."""
        mine, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 160, 0, 0))  # lines and columns
        seen: list[bytes] = []
        reader = threading.Thread(target=_read_terminal, args=(mine, seen))
        reader.start()
        streams = self._streams(None, {}) | {"stderr": theirs}
        done = subprocess.run(self._command(*questions), **streams, text=True, timeout=HANG_S)
        os.close(theirs)
        reader.join()
        os.close(mine)
        return self._answers(done.returncode, done.stdout, b"".join(seen).decode())

    def start(self, *questions: Question) -> subprocess.Popen[str]:
        """The process, to be ended by the test."""
        return subprocess.Popen(self._command(*questions), **self._streams(None, {}), text=True)

    def _command(self, *questions: Question) -> list[str]:
        return [sys.executable, "-c", ASK, json.dumps([questions, self.waits])]

    def _streams(self, token: str | None, env: dict[str, str]) -> dict[str, object]:
        environment = hub_environment(self.hub, self.home, token=token) | env
        return {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def _answers(self, status: int, stdout: str, stderr: str) -> list[list[str]]:
        assert status == 0, stderr
        self.printed = stdout + stderr
        assert TOKEN[3:] not in self.printed
        return [json.loads(line) for line in stdout.splitlines()]


def _read_terminal(terminal: int, seen: list[bytes]) -> None:
    try:
        while part := os.read(terminal, 65_536):
            seen.append(part)
    except OSError:  # Linux's way to say that nobody writes any more
        pass
