"""Standard streams on descriptors that fail, and the paragraphs of system errors."""

from __future__ import annotations

import errno
import io
import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from kyon_pl.cli.streams import STDOUT, Output, Stream
from kyon_pl.cli.system_errors import explain_system_error, report_fault
from kyon_pl.errors import DataError


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def pipe_without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def closed_terminal() -> int:
    ours, its = pty.openpty()
    os.close(ours)
    return its


def pipe_that_would_block() -> int:
    _, writer = os.pipe()
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, b"x" * 65536)
        except BlockingIOError:
            return writer


FAILING = {full_disk: errno.ENOSPC, pipe_without_reader: errno.EPIPE, closed_terminal: errno.EIO}


@pytest.mark.parametrize("open_output", [*FAILING, pipe_that_would_block])
def test_an_output_that_is_not_required_may_fail(open_output: Callable[[], int]) -> None:
    stream = Stream(Output(open_output(), required=False), sys.__stderr__)
    for _ in range(3):
        print("a line 行 \udcff", file=stream, flush=True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk"])
def test_a_character_that_the_encoding_lacks_is_an_escape_sequence(encoding: str, tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as file:
        stream = Stream(Output(file.fileno(), required=True), io.TextIOWrapper(io.BytesIO(), encoding))
        print("행 \udcff", file=stream, flush=True)
    assert (tmp_path / "output").read_bytes() == b"\\ud589 \\udcff\n"


@pytest.mark.parametrize("open_output", FAILING)
def test_the_failure_of_a_required_output_names_it(open_output: Callable[[], int]) -> None:
    stream = Stream(Output(open_output(), required=True), None)
    with pytest.raises(OSError) as failed:  # noqa: PT012 (either of the two may raise it)
        stream.write("a line")
        stream.flush()
    assert (failed.value.errno, failed.value.filename) == (FAILING[open_output], STDOUT)
    stream.output.required = False
    stream.close()  # as the interpreter does at exit, with what is still buffered


def raised_by_multiprocessing(error: Exception) -> Exception:
    """With a frame of that library in its traceback."""
    scope = {"__name__": "multiprocessing.synchronize", "error": error}
    try:
        exec("raise error", scope)
    except OSError as caught:
        return caught
    raise AssertionError


def after(first: Exception, second: Exception) -> Exception:
    """The second was raised while the first was handled."""
    second.__context__ = first
    return second


WORKERS_ERROR = (
    "Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    '  File "loader.py", line 1, in f\nOSError: [Errno 28] No space left on device'
)
KILLED = (
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit."
)
EXPLAINED = {
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: the disk is full. Make room there"),
    "terminal": (OSError(errno.EIO, "Input/output error", STDOUT), "standard output: input/output error. "),
    "odd name": (OSError(errno.ENAMETOOLONG, "File name too long", b"\xff"), "\udcff: file name too long. "),
    "shared memory": (
        raised_by_multiprocessing(OSError(errno.ENOSPC, "No space left on device")),
        "shared memory (/dev/shm): it is full. Enlarge it",
    ),
    "shared memory of a worker": (OSError(WORKERS_ERROR), "shared memory (/dev/shm): it is full. Enlarge it"),
    "no shared memory for a batch": (
        RuntimeError(
            "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            "RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"
        ),
        "shared memory (/dev/shm): RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_3>: No",
    ),
    "killed worker": (RuntimeError(KILLED), "shared memory (/dev/shm): DataLoader worker (pid 7) is killed"),
    "vanished worker": (
        RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
        "data.workers: DataLoader worker (pid(s) 7, 8) exited unexpectedly. ",
    ),
    "worker ended after an error": (
        after(MemoryError(), RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 143.")),
        "memory: there is not enough memory. ",
    ),
    "open files": (OSError(errno.EMFILE, "Too many open files", "x"), "x: too many open files. Raise the limit"),
    "open files of torch": (
        RuntimeError("Too many open files. Communication with the workers is no longer possible."),
        "data.workers: too many open files. Raise the limit",
    ),
    "memory": (MemoryError(), "memory: there is not enough memory. "),
    "memory for a library": (ImportError("x.so: failed to map segment"), "memory: there is not enough memory. "),
    "memory of torch": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        "memory: [enforce fail",
    ),
    "depth": (RecursionError("maximum recursion depth exceeded"), "input: it is nested too deeply. "),
    "bytes": (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "text: 'utf-8' codec can't decode"),
    "ours": (DataError("rows.jsonl", "no target", "Add one"), "rows.jsonl: no target. Add one."),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_what_a_machine_does_is_one_paragraph(name: str) -> None:
    error, beginning = EXPLAINED[name]
    explained = str(explain_system_error(error))
    assert explained.startswith(beginning)
    assert "\n" not in explained


class FailingTwice(Callback):
    """The loader fails, and with it what Lightning asks the loader in its teardown; see test_worker_limits.py."""

    def __init__(self, first: Exception) -> None:
        self.first = first

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.fit_loop.teardown = self.fail  # type: ignore[method-assign]
        raise self.first

    def fail(self) -> None:
        raise RuntimeError("Please call `iter(combined_loader)` first.")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("first", "said"),
    [(OSError(errno.ENOSPC, "No space left on device", "x"), "x: the disk is full. "), (KeyError("a fault"), "None")],
)
def test_an_error_of_the_teardown_hides_no_other(first: Exception, said: str, tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[FailingTwice(first)],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(RuntimeError, match="combined_loader") as failed:
        trainer.fit(BoringModel())
    assert str(explain_system_error(failed.value)).startswith(said)


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), ZeroDivisionError(), KeyError("x")])
def test_a_fault_of_the_program_is_not_explained_away(error: Exception) -> None:
    assert explain_system_error(error) is None


def test_a_fault_is_shown_with_its_traceback_and_where_to_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    error = KeyError("a\x1b[31m")
    report_fault(KeyError, error, None)
    report_fault(ValueError, ValueError("a\x1b]0;title\x07"), None)
    assert "KeyError" in shown.getvalue()
    assert shown.getvalue().count("the project's issue tracker") == 2
    assert "\x1b" not in shown.getvalue()
