"""Locks between processes: one writer for a run folder or an output."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kyon_pl.errors import MachineError

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_TRIES, _WAIT_S = 5, 0.02  # `read_holder` of another process holds the lock for less than that
_held: set[Lock] = set()  # by this process


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        process: in words, such as `process 12 on host a`.
        settings: of its command, as it wrote them; empty if it wrote none.
    """

    process: str
    settings: Mapping[str, str]


class Lock:
    """An exclusive lock on a file, until `release` or the end of this process.

    The kernel releases it, even after SIGKILL (`flock`; Linux passes it on to the server of an NFS). The file says
    which process holds the lock. A process that is forked from this one does not keep the lock.

    Args:
        file: the lock file, in an existing folder; created if needed, and removed by `release`.
        what: what is locked, for the error, such as a run folder.
        fix: what to do if another process holds the lock.
        settings: of this command, for `read_holder`.

    Raises:
        MachineError: another process holds the lock.
        OSError: the file cannot be written.
    """

    def __init__(self, file: Path, what: Path, fix: str, settings: Mapping[str, str] | None = None) -> None:
        self.file = file
        handle = _open_locked(file)
        if handle is None:
            raise in_use(what, read_holder(file), fix)
        self.handle = handle
        _held.add(self)
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "settings": dict(settings or {})})
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, text.encode(), 0)

    def release(self) -> None:
        """Remove the file and release the lock; a second call, or one in a forked process, does nothing."""
        if self not in _held:
            return
        self.file.unlink(missing_ok=True)
        _held.remove(self)
        os.close(self.handle)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def in_use(what: Path, holder: Holder | None, fix: str) -> MachineError:
    """The error for something that another process is writing.

    Args:
        what: what is locked.
        holder: from `read_holder`.
        fix: what to do.
    """
    return MachineError(str(what), f"{holder.process if holder else 'another process'} is writing it", fix)


def read_holder(file: Path) -> Holder | None:
    """The process that holds the lock on a file; None if no process does.

    Args:
        file: the lock file; it need not exist.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        handle = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if _flock(handle, fcntl.LOCK_SH):
            return None
        facts = _facts(os.pread(handle, 1 << 20, 0))
    finally:
        os.close(handle)
    known = {"pid", "host"} <= facts.keys()
    process = f"process {facts['pid']} on {facts['host']}" if known else "another process"
    settings = facts.get("settings", {})
    return Holder(process, settings if isinstance(settings, dict) else {})


def _facts(content: bytes) -> dict[str, Any]:
    """What the holder wrote; empty if it has not done so yet."""
    try:
        facts = json.loads(content)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _open_locked(file: Path) -> int | None:
    """The handle of the locked file; None if another process holds the lock."""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_WAIT_S)
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if _flock(handle, fcntl.LOCK_EX) and _is_at(file, handle):
            return handle
        os.close(handle)
    return None


def _flock(handle: int, kind: int) -> bool:
    """Whether a file is locked now."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("this file system has no locks (%s): do not start two commands that write here", error.strerror)
    return True


def _is_at(file: Path, handle: int) -> bool:
    """Whether an open file still has its name: the one that held the lock before may have removed it."""
    try:
        return os.path.samestat(file.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _close_in_child() -> None:
    """Close the locks that a forked process has from its parent: they would outlive it."""
    for lock in _held:
        os.close(lock.handle)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
