"""What one attempt is: a command, its damaged inputs, and the process that it runs in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The process of an attempt, where it is not a usual one.

    Attributes:
        powerless: without the capabilities of root, so that the modes of files hold.
        limits: of `resource`, by name: `{"NOFILE": 64}`. `AS` is added to what the process has.
        streams: what is behind `stdin`, `stdout`, `stderr`: `closed`, `gone` (a pipe that nobody reads), `full`
            (/dev/full), or the path of a file.
        encoding: of standard output and error.
        environment: variables that are set.
        disk_kib: size of the file system of the output folder; 0: that of the machine.
        read_only: the output folder cannot be written by any user.
        out_mode: of the output folder.
        own_process: started anew, where the environment is read by imports.
    """

    powerless: bool = False
    limits: dict[str, int] = field(default_factory=dict)
    streams: dict[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"
    environment: dict[str, str] = field(default_factory=dict)
    disk_kib: int = 0
    read_only: bool = False
    out_mode: int = 0o755
    own_process: bool = False


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attempt to break a command.

    Attributes:
        kind: what is attacked, such as `rows.jsonl`; counted together.
        how: what is done to it.
        command: its name.
        make: writes the inputs into a folder `in` and what exists in the output folder beforehand into `out`, both in
            the folder given, and returns the words behind the command. The command runs in `out`.
        places: a refusal names one of these; empty: not looked at.
        surroundings: of the process.
    """

    kind: str
    how: str
    command: str
    make: Callable[[Path], list[str]]
    places: tuple[str, ...] = ()
    surroundings: Surroundings = Surroundings()

    @property
    def name(self) -> str:
        """Unique, and the same in every run."""
        return f"{self.command} | {self.kind} | {self.how}"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How an attempt ended.

    Attributes:
        status: as subprocess has it, negative for a signal; None: it was killed after `HANG_S`.
        output: standard output.
        errors: standard error.
        seconds: it took.
        changed: inputs whose bytes, kind or mode changed, and files that appeared outside of the output folder.
    """

    status: int | None
    output: bytes
    errors: bytes
    seconds: float
    changed: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"status": self.status, "seconds": round(self.seconds, 2), "changed": self.changed}
