"""A small Hugging Face Hub on 127.0.0.1 for the real clients: huggingface_hub, datasets, transformers.

It serves folders as repositories, hands large files out from a second host as the real one does, takes pushes from the
account that its token belongs to, and misbehaves when asked to:

    with HubServer(models={"THUDM/chatglm2-6b": folder}) as hub:
        hub.fail("GET */config.json", status=503, times=2)
        subprocess.run([...], env=hub_environment(hub, tmp_path))
        assert hub.asked("GET */config.json")
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from hub_protocol import HubSocket, Repository, Request
from hub_writing import WritableHubHandler
from serving import serve, stop


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that look like `pattern`."""

    pattern: str
    times: int
    status: int | None = None
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after_bytes: int | None = None
    reset: bool = False
    silent: bool = False


class HubServer:
    """The Hub as a context manager.

    Attributes:
        endpoint: its address, for `HF_ENDPOINT`; set inside the `with` block.
        log: every request so far.
        bytes_per_second: the speed of the bodies; None: as fast as it goes.
        commits: of what was pushed, in order: repository, commit, message.

    Args:
        models: repository id to folder.
        datasets: repository id to folder.
        token: the one token that is accepted; the Hub refuses every other, for public repositories too.
        private: ids that cannot be seen without the token.
        gated: ids that everyone sees and whose files nobody may read, with the token or without.
        user: the account of the token; it may write to what is its own.
    """

    def __init__(
        self,
        models: Mapping[str, Path] | None = None,
        datasets: Mapping[str, Path] | None = None,
        *,
        token: str | None = None,
        private: tuple[str, ...] = (),
        gated: tuple[str, ...] = (),
        user: str = "kyon",
    ) -> None:
        self.user = user
        self.commits: list[tuple[str, str, str]] = []
        self._storage = tempfile.TemporaryDirectory()
        self._numbers = itertools.count()
        self.token, self.private, self.gated = token, private, gated
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.bytes_per_second: float | None = None
        self.closing = threading.Event()
        self.repositories: dict[tuple[str, str], Repository] = {}
        self._lock = threading.Lock()
        for kind, folders in (("models", models or {}), ("datasets", datasets or {})):
            for repo_id, folder in folders.items():
                self.publish(kind, repo_id, folder)

    def publish(self, kind: str, repo_id: str, folder: Path) -> str:
        """Serve the folder as it is now as the repository's newest commit; returns that commit's id."""
        repository = self.repositories[kind, repo_id] = Repository(folder)
        return repository.commit

    def new_folder(self) -> Path:
        """An empty folder that lives as long as the server."""
        folder = Path(self._storage.name) / f"commit-{next(self._numbers)}"
        folder.mkdir()
        return folder

    def uploaded(self, sha256: str) -> Path:
        """Where a large file lies once it has been uploaded."""
        return Path(self._storage.name) / sha256

    def fail(self, pattern: str, *, status: int, times: int = 1, headers: dict[str, str] | None = None) -> None:
        """Answer the next requests like `pattern` ("GET */config.json") with this status."""
        self.faults.append(Fault(pattern, times, status=status, headers=headers or {}))

    def answer(self, pattern: str, *, body: bytes | None = None, headers: dict[str, str] | None = None) -> None:
        """Answer all requests like `pattern` with this body, or with the right one, and with these headers."""
        self.faults.append(Fault(pattern, 10**9, body=body, headers=headers or {}))

    def cut(self, pattern: str, *, after_bytes: int, times: int = 1, reset: bool = False) -> None:
        """Hang up in the middle of the next bodies that answer requests like `pattern`, politely or with a reset."""
        self.faults.append(Fault(pattern, times, cut_after_bytes=after_bytes, reset=reset))

    def stall(self, pattern: str, *, after_bytes: int, times: int = 1) -> None:
        """Fall silent after so much of the next bodies, without hanging up; after -1 bytes: before any answer."""
        self.faults.append(Fault(pattern, times, cut_after_bytes=after_bytes, silent=True))

    def take_fault(self, request: str) -> Fault | None:
        """The fault that this request meets, if any; it counts down."""
        with self._lock:
            for fault in self.faults:
                if fault.times and fnmatch(request, fault.pattern):
                    fault.times -= 1
                    return fault
        return None

    def asked(self, pattern: str) -> list[Request]:
        """The logged requests that look like `pattern`."""
        return [request for request in self.log if fnmatch(f"{request.method} {request.path}", pattern)]

    def __enter__(self) -> HubServer:
        self._server = HubSocket(self, WritableHubHandler)
        self.endpoint = serve(self._server)
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        stop(self._server)
        self._storage.cleanup()


def hub_environment(hub: HubServer, home: Path, *, token: str | None = None) -> dict[str, str]:
    """The environment of a process that knows no other Hub, no other cache and no other token than these.

    It is for subprocesses: huggingface_hub reads these variables when it is imported.
    """
    foreign = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "1",  # transformers would ask the Hub's conversion service, in a thread
        "NO_PROXY": "127.0.0.1,localhost",
    }
    return environment | ({"HF_TOKEN": token} if token else {})
