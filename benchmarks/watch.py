"""A command, with its seconds and the host memory of its process at its peak."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

EVERY_S = 0.02
SHOWN_LINES = 12  # of what was said by a command that failed


@dataclass(frozen=True)
class Watched:
    """What was seen.

    Attributes:
        seconds: from start to end.
        private_gib: most memory that was nobody else's and no mapped file (RssAnon).
        resident_gib: most memory in all, mapped files that the system can take back included (RSS).
        output: what the command said.
    """

    seconds: float
    private_gib: float
    resident_gib: float
    output: str


def watch(words: list[str], log: Path) -> Watched:
    """Run a command to its end.

    Args:
        words: of the command.
        log: file for what it says.

    Raises:
        RuntimeError: it ended with another status than 0; the text has its last lines.
    """
    private_kib, resident_kib, started_s = 0, 0, time.monotonic()
    with log.open("w") as stream:
        child = subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT)
        while child.poll() is None:
            found = _memory_kib(child.pid)
            private_kib = max(private_kib, found.get("RssAnon", 0))
            resident_kib = max(resident_kib, found.get("VmHWM", 0))
            time.sleep(EVERY_S)
    seconds, output = time.monotonic() - started_s, log.read_text(errors="replace").replace("\r", "\n")
    if child.returncode:
        lines = [line for line in output.splitlines() if line.strip()]
        raise RuntimeError(f"{' '.join(words)}: status {child.returncode}\n" + "\n".join(lines[-SHOWN_LINES:]))
    return Watched(seconds, private_kib / 2**20, resident_kib / 2**20, output)


def _memory_kib(pid: int) -> dict[str, int]:
    """RssAnon and VmHWM; a process that has just ended has none."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    parts = [line.split() for line in lines if line.startswith(("RssAnon", "VmHWM"))]
    return {name.rstrip(":"): int(value) for name, value, _ in parts}
