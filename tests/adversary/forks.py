"""Runs an attempt in a fork of a process that has imported everything: a process that really ends, without seconds of
imports first, and that can be killed when it hangs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

from attack import Attack, Ended, Surroundings
from tqdm import tqdm

HANG_S = 60
MEMORY = 6 << 30  # bytes that an attempt may take, so that none takes those of the machine
_POLL_S = 0.01
_CLONE_NEWNS = 0x00020000
_CAPABILITIES_3 = 0x20080522
_KEPT_BYTES = 200_000  # of what a command says

sys.path[:0] = [str(Path(__file__).parents[2])]  # the package beside this file


def import_everything() -> None:
    """What the commands import late, so that a fork has it already."""
    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401
    import scipy.sparse.csgraph  # noqa: F401
    import sklearn.feature_extraction.text  # noqa: F401
    import tensorboard.backend.event_processing.event_accumulator  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import torchmetrics.text  # noqa: F401
    import transformers.models.glm.modeling_glm
    import transformers.tokenization_utils_fast  # noqa: F401

    import kyon_pl.chat.command
    import kyon_pl.cli.lightning_cli
    import kyon_pl.doctor.command
    import kyon_pl.evaluation.report
    import kyon_pl.export.convert_adapter
    import kyon_pl.export.merge
    import kyon_pl.preview.command
    import kyon_pl.publish.push
    import kyon_pl.roles.build  # noqa: F401


def warm_up(command_lines: list[list[str]], folder: Path) -> None:
    """Run commands in this process, so that forks find imports, caches and compiled patterns there.

    Args:
        command_lines: that succeed.
        folder: of an attempt, with their inputs.
    """
    kept = [os.dup(number) for number in range(3)]
    here, environment, words = Path.cwd(), dict(os.environ), sys.argv
    streams = [(name, getattr(sys, name)) for name in ("stdin", "stdout", "stderr")]
    become(folder, Surroundings())
    for line in command_lines:
        run_command(line)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    os.chdir(here)
    for number, descriptor in enumerate(kept):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for name, stream in streams:
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    tempfile.tempdir = None
    shutil.rmtree(folder / "home/hf", ignore_errors=True)
    gc.collect()
    gc.freeze()  # forks then leave its pages alone


def attempt(attack: Attack, folder: Path) -> tuple[Ended, list[str]]:
    """Make the inputs of an attack, run its command, and look at what it left.

    Args:
        attack: to try.
        folder: empty; `in`, `out`, `home` and `tmp` are made in it.

    Returns:
        How it ended, and the words that were typed.
    """
    for name in ("in", "out", "home", "tmp"):
        (folder / name).mkdir()
    words = [attack.command, *attack.make(folder)]
    ours = attack.surroundings
    (folder / "out").chmod(ours.out_mode)
    before, started = look_at(folder), time.monotonic()
    start = start_process if ours.own_process else fork
    status = wait_for(start(words, folder, ours), started)
    changed = changes(before, look_at(folder))
    said = [(folder / name).read_bytes()[:_KEPT_BYTES] for name in ("stdout", "stderr")]
    return Ended(
        status=status, output=said[0], errors=said[1], seconds=time.monotonic() - started, changed=changed
    ), words


def run_healthy(words: list[str], folder: Path) -> None:
    """Run a command that has to succeed, in a fork.

    Raises:
        RuntimeError: it did not.
    """
    (folder.parent / "tmp").mkdir(exist_ok=True)
    (folder.parent / "home").mkdir(exist_ok=True)
    status = wait_for(fork(words, folder.parent, Surroundings()), time.monotonic())
    if status != 0:
        raise RuntimeError(f"kyon-pl {' '.join(words)}: {(folder.parent / 'stderr').read_text()}")


def fork(words: list[str], folder: Path, ours: Surroundings) -> int:
    """Start a command in a fork.

    Args:
        words: the command line.
        folder: of the attempt.
        ours: what is unusual about the process.

    Returns:
        Its process id, which is that of its process group too.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        become(folder, ours)
        status = run_command(words)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def run_command(words: list[str]) -> int:
    """What `python -m kyon_pl` does, up to the flush at exit; the status of the process."""
    import traceback

    from kyon_pl.cli import main

    sys.argv = [str(Path(sys.executable).with_name("kyon-pl")), *words]  # what ranks are started with
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            status = status or 120  # as Python does
    return status


def start_process(words: list[str], folder: Path, ours: Surroundings) -> int:
    """As `fork`, a new process of Python."""
    environment = (
        os.environ
        | places_of(folder)
        | {"HF_HOME": str(folder / "home/hf"), "PYTHONIOENCODING": ours.encoding}
        | ours.environment
    )
    command = [
        sys.executable,
        str(Path(__file__).with_name("alone.py")),
        str(folder),
        json.dumps(ours.__dict__),
        *words,
    ]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    process.returncode = 0  # it is waited for by its id
    return process.pid


def places_of(folder: Path) -> dict[str, str]:
    """The environment's folders, all in that of the attempt."""
    home = str(folder / "home")
    return {"HOME": home, "XDG_CACHE_HOME": f"{home}/.cache", "TMPDIR": str(folder / "tmp")}


def become(folder: Path, ours: Surroundings) -> None:
    """Make this process the one that a shell would have started."""
    os.environ.update(places_of(folder) | ours.environment)
    tempfile.tempdir = None
    os.chdir(folder / "out")
    if ours.disk_kib or ours.read_only:
        mount(folder / "out", ours)
        os.chdir(folder / "out")
    redirect(folder, ours)
    tqdm.set_lock(threading.RLock())  # the one that was inherited is shared with forks that may have been killed
    for name, limit in ({"AS": MEMORY} | ours.limits).items():
        used = resident_address_space() if name == "AS" else 0
        number = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(number, (used + limit, resource.getrlimit(number)[1]))
    if ours.powerless:
        drop_capabilities()


def drop_capabilities() -> None:
    """Make root an ordinary owner of its files; an ordinary user has nothing to drop."""
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "the capabilities of root stay")


def mount(place: Path, ours: Surroundings) -> None:
    """A small or read-only file system, seen by this process only; without the right to mount, a limit for files."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.unshare(_CLONE_NEWNS) == 0 and libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None) == 0
    options = f"size={ours.disk_kib or 16}k,mode=777".encode()
    flags = 1 if ours.read_only else 0
    if not done or libc.mount(b"tmpfs", bytes(place), b"tmpfs", flags, options):
        ours.limits.setdefault("FSIZE", ours.disk_kib * 1024)


def redirect(folder: Path, ours: Surroundings) -> None:
    """Put files, or what the surroundings name, behind the standard streams."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        place = ours.streams.get(name, os.devnull if number == 0 else str(folder / name))
        if place == "gone":
            reader, descriptor = os.pipe()
            os.close(reader)
        else:
            place = "/dev/full" if place == "full" else os.devnull if place == "closed" else place
            descriptor = os.open(place, os.O_RDONLY if number == 0 else flags, 0o644)
        os.dup2(descriptor, number)
        if descriptor > 2:
            os.close(descriptor)
    for name in ("stdout", "stderr"):
        (folder / name).touch()
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (as Python does)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding=ours.encoding, errors="strict"
    )
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)), ours.encoding, "backslashreplace", line_buffering=True
    )
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if ours.streams.get(name) == "closed":
            os.close(number)
            setattr(sys, name, None)
        setattr(sys, f"__{name}__", getattr(sys, name))


def resident_address_space() -> int:
    """The bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def wait_for(pid: int, started: float) -> int | None:
    """The status of a process; None: it was killed after `HANG_S`, with its children.

    On a machine with more to do than processors, the time is longer by as much.
    """
    status = None
    patience = HANG_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    while time.monotonic() < started + patience:
        done, raw = os.waitpid(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(raw)
            break
        time.sleep(_POLL_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it left behind, too
    if status is None:
        os.waitpid(pid, 0)
    return status


def look_at(folder: Path) -> dict[str, tuple[object, ...]]:
    """Kind, mode and bytes of everything in the folder of an attempt but the output and the homes."""
    found: dict[str, tuple[object, ...]] = {}
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = ["in"]
            files = [file for file in files if file not in ("stdout", "stderr")]
        for name in [*folders, *files]:
            path = Path(parent) / name
            about = path.lstat()
            content: object = None
            if stat.S_ISREG(about.st_mode):
                content = zlib.crc32(path.read_bytes()) if os.access(path, os.R_OK) else about.st_mtime_ns
            elif stat.S_ISLNK(about.st_mode):
                content = str(path.readlink())
            found[str(path.relative_to(folder))] = (about.st_mode, content)
    return found


def changes(before: dict[str, tuple[object, ...]], after: dict[str, tuple[object, ...]]) -> list[str]:
    """What is different, in words."""
    names = sorted(before.keys() | after.keys())
    return [
        f"{name} {'appeared' if name not in before else 'is gone' if name not in after else 'changed'}"
        for name in names
        if before.get(name) != after.get(name)
    ]
