"""Runs commands of `kyon-pl` in a process of its own, which knows the tests' Hub and no other.

huggingface_hub reads its environment when it is imported, and a process takes seconds to start: one runs them all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hub_server import HubServer, hub_environment

TOKEN = "hf_0123456789secret"
RUN = """
import contextlib, io, json, os, sys, traceback
from kyon_pl.cli import main

for line in sys.stdin:
    words, token = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(words[1], {}) if words[0] == "python" else main(words)
        except SystemExit as end:
            status = end.code
        except Exception:
            traceback.print_exc()
            status = 1
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


@dataclass
class Answer:
    status: int
    out: str
    err: str


class PushAsker:
    """The process; nothing that it prints may hold the token."""

    def __init__(self, hub: HubServer, home: Path) -> None:
        # without Xet, whose storage the tests' Hub does not have
        environment = hub_environment(hub, home) | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *words: str, token: str | None = TOKEN) -> Answer:
        self.say(*words, token=token)
        assert self.process.stdout
        answer = Answer(*json.loads(self.process.stdout.readline()))
        assert TOKEN[3:] not in answer.out + answer.err
        return answer

    def say(self, *words: str, token: str | None = TOKEN) -> None:
        """Start a command, without waiting for its end."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps([words, token]) + "\n")
        self.process.stdin.flush()

    def __enter__(self) -> PushAsker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
