"""The standard streams of this process: a terminal, pipe or disk behind them that fails stops no run."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDOUT = "standard output"


class Output(io.FileIO):
    """Writes to a file descriptor. A write that fails is discarded, unless the output is required.

    Args:
        descriptor: 1 or 2.
        required: whether a failed write raises an error.

    Attributes:
        required: may be changed at any time.
    """

    def __init__(self, descriptor: int, required: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.required = required

    def write(self, data: ReadableBuffer) -> int:
        """Write bytes.

        Returns:
            The number of bytes that need not be written again.

        Raises:
            OSError: the output is required; the error names the stream, and keeps the system's number.
        """
        size = memoryview(data).nbytes
        try:
            written: int | None = super().write(data)
        except OSError as error:
            if self.required:
                raise OSError(error.errno, error.strerror, STDOUT) from None
            return size
        return size if written is None else written  # None: a terminal that would block


class Stream(io.TextIOWrapper):
    """A text stream on an `Output`. A character that the encoding does not have is written as an escape sequence.

    Args:
        output: where the bytes go.
        like: the stream of the interpreter, whose encoding and buffering are kept; None: it was closed at the start.
    """

    def __init__(self, output: Output, like: TextIO | None) -> None:
        self.output = output
        known = like if isinstance(like, io.TextIOWrapper) else None
        unbuffered = known is not None and known.write_through  # PYTHONUNBUFFERED
        super().__init__(
            output if unbuffered else io.BufferedWriter(output),
            encoding=known.encoding if known else "utf-8",
            errors="backslashreplace",
            line_buffering=known is not None and known.line_buffering,
            write_through=unbuffered,
        )


def set_up_streams() -> None:
    """Replace the interpreter's standard output, which is required, and standard error, which is not.

    A stream that a caller of Python has replaced is left alone. Descriptors that were closed at the start lead to
    `/dev/null`: the next file that is opened would get their number, and the messages of libraries with it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (for the life of the process)
    if sys.stdout is sys.__stdout__:
        sys.stdout = Stream(Output(1, required=True), sys.__stdout__)
    if sys.stderr is sys.__stderr__:
        sys.stderr = Stream(Output(2, required=False), sys.__stderr__)
    require_stdout(True)


def require_stdout(required: bool) -> None:
    """Set whether a failed write to standard output raises an error.

    Args:
        required: True if the output is the result of the command; False for progress and tables of a run.
    """
    if isinstance(sys.stdout, Stream):
        sys.stdout.output.required = required
