"""Logging: one line per event to the terminal and to `run.log`, and only the useful messages of libraries."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import sys
import threading
import unicodedata
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

from kyon_pl.language import localized_record

log = logging.getLogger(__name__)

RUN_LOG = "run.log"
_REPLACEMENT = "\ufffd"
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# library warnings about other libraries or about deliberate choices: the beginning of the text, and the reason
IGNORED_WARNINGS = {
    "`loftq_config` specified": "the parser writes out all of PEFT's defaults",
    ".*does not have many workers": "data.workers sets the number, and its help gives the reason",
    r"\s*(``|By default only one|skip_none|ArgumentParser)": "Lightning's use of jsonargparse",
    "`isinstance\\(treespec": "Lightning's use of torch",
    "`(is_)?gradient_checkpointing": "the new names are not in transformers 5.17 yet",
    "LightningCLI's args parameter": "the command line removes its own options from the arguments",
    "The number of training batches": "log_every_n_steps counts optimizer steps",
    "Checkpoint directory .* exists": "a resumed run uses its folder again",
}


class Terminal(logging.Handler):
    """Writes lines to standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line. A terminal that was closed gets no more lines; `run.log` goes on."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except (OSError, ValueError):  # EIO, EPIPE, a full disk behind it; ValueError: the stream was closed
            self.setLevel(logging.CRITICAL + 1)


class OneLine(logging.Formatter):
    """Formats a record as one line without control characters: parts of it may come from data."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; line ends become `↵`."""
        return replace_control_characters(super().format(record)).replace("\n", "↵")


class OneLocalizedLine(OneLine):
    """Formats a record as one line in the language of the terminal; `run.log` is searched for, and stays English."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; line ends become `↵`."""
        return super().format(localized_record(record))


class RunLogFile(logging.FileHandler):
    """Appends lines to `run.log`. If it cannot be written, the terminal says so once, and the run goes on."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Warn at the first line that is lost."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.failed:
            self.failed = True
            warn_of_run_log(Path(self.baseFilename), error)


class UntilRunFolder(logging.handlers.MemoryHandler):
    """Buffers lines until the run folder exists, and forwards them at once afterwards."""

    def __init__(self) -> None:
        super().__init__(capacity=10_000, flushOnClose=False)

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802 (logging's name)
        """Whether there is a file to forward lines to."""
        return self.target is not None


def set_up_logging(level: str = "info") -> None:
    """Send this package's log lines to the terminal, and buffer them for `run.log`.

    Ranks other than 0 log warnings and errors only. `run.log` gets all lines from `info` on, whatever the terminal
    shows.

    Args:
        level: lowest level that the terminal shows, one of `LEVELS`. `debug` includes Lightning's lines.
    """
    logger = logging.getLogger("kyon_pl")
    chosen, rank = LEVELS[level], rank_of(os.environ)
    terminal, kept = Terminal(chosen), UntilRunFolder()
    terminal.setFormatter(OneLocalizedLine("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s"))
    logger.handlers = [terminal, kept]
    silent = rank > 0 and chosen > logging.DEBUG
    logger.setLevel(logging.WARNING if silent else min(logging.INFO, chosen))
    logger.propagate = False
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.showwarning = show_warning
    threading.excepthook = report_thread
    # PEFT imports bitsandbytes if it is installed, and it warns of a missing CPU kernel
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning of Python as it does, without control characters: libraries put names from settings into them."""
    text = replace_control_characters(warnings.formatwarning(message, category, filename, lineno, line))
    with contextlib.suppress(OSError, ValueError):  # a closed terminal
        (file or sys.stderr).write(text)


def quiet_libraries(level: str = "info") -> None:
    """Silence Lightning's info lines. Call it after importing Lightning, which sets the level of its logger."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.INFO if level == "debug" else logging.WARNING)


def write_run_log(folder: Path, rank: int) -> None:
    """Append the buffered lines, and all that follow, to the `run.log` of a folder.

    Args:
        folder: run folder; created if it does not exist.
        rank: rank of this process, for the line prefix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        file = RunLogFile(folder / RUN_LOG, encoding="utf-8")
    except OSError as error:
        warn_of_run_log(folder / RUN_LOG, error)
        return
    file.setFormatter(OneLine(f"%(asctime)s rank {rank} %(levelname)-7s %(message)s"))
    for handler in logging.getLogger("kyon_pl").handlers:
        if isinstance(handler, UntilRunFolder):
            handler.setTarget(file)
            handler.flush()


def warn_of_run_log(file: Path, error: OSError) -> None:
    """Warn that lines of `run.log` are lost."""
    log.warning("%s cannot be written (%s); the run goes on without it", from_here(file), error.strerror or error)


def rank_of(environment: Mapping[str, str]) -> int:
    """The rank of this process, from the environment of torchrun, SLURM or Lightning."""
    ranks = (environment.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next((rank for rank in ranks if rank), 0))


def from_here(path: str | Path) -> Path:
    """A path relative to the working directory if it is inside it, else absolute."""
    path = Path(path).absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def report_thread(failure: threading.ExceptHookArgs) -> None:
    """Report the exception of a thread, unless TensorBoard's could not write: it tells the main thread."""
    of_tensorboard = type(failure.thread).__module__.startswith("tensorboard.")
    if not (of_tensorboard and isinstance(failure.exc_value, OSError)):
        threading.__excepthook__(failure)


def replace_control_characters(text: str) -> str:
    """Replace control characters, surrogates and bidirectional controls by `�`; line feeds and tabs stay.

    They would move the cursor, change colours or reverse the reading direction.
    """
    return "".join(
        character
        if character in "\n\t"
        or (unicodedata.category(character) not in ("Cc", "Cs") and character not in _BIDI_CONTROLS)
        else _REPLACEMENT
        for character in text
    )
