"""Errors of the operating system, of the interpreter and of loader workers, each as one paragraph."""

from __future__ import annotations

import errno
import multiprocessing
import os
import queue
import re
import sys
import traceback
from types import TracebackType

from kyon_pl.errors import KyonError, MachineError
from kyon_pl.language import localized
from kyon_pl.logs import replace_control_characters

ISSUES = "the project's issue tracker"
_LONGEST_SHOWN = 300  # characters of a path
_DEBUG = "kyon-pl COMMAND --debug shows where it happened"
_OPEN_FILES = "Raise the limit, for example with `ulimit -n 4096`, or lower data.workers"
_SHARED_MEMORY = "Enlarge it (Docker: --shm-size 1g), or set data.workers 0"
_TRAINER = "lightning.pytorch.trainer.trainer"
_NOT_MAPPED = "failed to map segment"  # an ImportError of the dynamic loader
_MEMORY = "Close other programs, or use smaller batches, fewer data.workers or a smaller base"

# number -> (what is wrong, what to do)
_SYSTEM = {
    errno.ENOSPC: ("the disk is full", "Make room there; `df -h` shows how full each disk is"),
    errno.EDQUOT: ("the disk is full: your quota is used up", "Make room there"),
    errno.EFBIG: ("the file is larger than the limit", "`ulimit -f` shows the limit"),
    errno.EMFILE: ("too many open files", _OPEN_FILES),
    errno.ENFILE: ("too many open files on this machine", _OPEN_FILES),
    errno.ENOMEM: ("there is not enough memory", _MEMORY),
    errno.EAGAIN: ("the system starts no more processes or threads", "`ulimit -u` shows the limit; lower data.workers"),
}

# text of a RuntimeError of torch -> (where, what is wrong, what to do); None: torch's first line
_TORCH: dict[str, tuple[str, str | None, str]] = {
    "Too many open files": ("data.workers", "too many open files", _OPEN_FILES),
    r"torch_\d+_\d+|shared memory": ("shared memory (/dev/shm)", None, _SHARED_MEMORY),
    "DataLoader worker .*(killed by signal|exited unexpectedly)": (
        "data.workers",
        None,
        "The system may have ended it for lack of memory; lower data.workers",
    ),
    "out of memory|not enough memory|can't allocate memory": ("memory", None, _MEMORY),
}


def explain_system_error(error: Exception) -> KyonError | None:
    """One paragraph for an error that a machine or its files cause, and that no command explains itself.

    Args:
        error: what a command has raised.

    Returns:
        None for any other error.
    """
    if isinstance(error, KyonError):
        return error
    first = error.__context__
    if isinstance(first, Exception) and _is_of_the_end(error, first):
        return explain_system_error(first)
    if isinstance(error, OSError):
        return _explain_os_error(error)
    if isinstance(error, UnicodeError):
        fix = f"Save the file as UTF-8, and use names in UTF-8; {_DEBUG}"
        return MachineError("text", _last_line(error), fix)
    if isinstance(error, MemoryError) or _NOT_MAPPED in str(error):
        return MachineError("memory", "there is not enough memory", _MEMORY)
    if isinstance(error, RecursionError):
        return MachineError("input", "it is nested too deeply", f"Use fewer levels of nesting; {_DEBUG}")
    for pattern, (where, found, fix) in _TORCH.items() if isinstance(error, RuntimeError) else ():
        if re.search(pattern, str(error)):
            lines = str(error).strip().splitlines()  # of an error of a worker: its traceback
            return MachineError(where, found or lines[-1 if lines[0].startswith("Caught ") else 0], fix)
    return None


def _is_of_the_end(error: Exception, first: Exception) -> bool:
    """Whether an error was raised because a run ended by a first one: of its workers, or of Lightning's teardown."""
    if "exited unexpectedly" in str(error):
        return not isinstance(first, queue.Empty)
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(f.f_code.co_name == "_teardown" and f.f_globals.get("__name__") == _TRAINER for f in frames)


def _explain_os_error(error: OSError) -> MachineError:
    # the loader raises a worker's error again, with the worker's traceback as its text and without a number
    last_line = _last_line(error)
    numbered = re.search(r"\[Errno (\d+)\] (.*)", last_line)
    number = error.errno or (int(numbered[1]) if numbered else None)
    where = os.fsdecode(error.filename) if error.filename else "operating system"
    where = where if len(where) <= _LONGEST_SHOWN else f"{where[:_LONGEST_SHOWN]}…"
    if not error.filename and _is_of_workers(error):
        where = "data.workers"
        if number in (errno.ENOSPC, errno.ENOMEM):
            return MachineError("shared memory (/dev/shm)", "it is full", _SHARED_MEMORY)
    found = error.strerror or (numbered[2] if numbered else last_line)
    unknown = found[:1].lower() + found[1:], f"Check the path and its permissions; {_DEBUG}"
    return MachineError(where, *_SYSTEM.get(number or 0, unknown))


def _is_of_workers(error: OSError) -> bool:
    """Whether an error was raised while a process was started or spoken to."""
    frames = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return "DataLoader worker" in str(error) or any(
        name.startswith(("multiprocessing.", "torch.multiprocessing")) for name in frames
    )


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def print_traceback(error: BaseException) -> None:
    """Print a traceback to standard error; its texts may come from data, so control characters are replaced."""
    sys.stderr.write(replace_control_characters("".join(traceback.format_exception(error))))


def report_fault(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Print the traceback of an error that nothing explains, and where to report it; a `sys.excepthook`.

    In a loader worker, which has inherited it, only the traceback is printed.
    """
    print_traceback(error)
    if multiprocessing.parent_process() is not None:
        return
    text = (
        "kyon-pl: nothing explains this error. Unless code of your own has raised it, please report the lines above at "
        f"{ISSUES}, with the output of kyon-pl doctor."
    )
    print(localized(text), file=sys.stderr)
