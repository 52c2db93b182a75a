"""Where events go: this project's own lines, one an event, to the terminal and to `run.log` in the run folder; of the
libraries only what a user can act on.
"""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

RUN_LOG = "run.log"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# warnings that libraries raise about each other, and about choices that are made on purpose here: the text's
# beginning, and why
IGNORED_WARNINGS = {
    "`loftq_config` specified": "the parser writes out all of PEFT's defaults",
    ".*does not have many workers": "data.workers says how many, and why",
    r"\s*(``|By default only one|skip_none|ArgumentParser)": "Lightning's use of jsonargparse",
    "`isinstance\\(treespec": "Lightning's use of torch",
    "`(is_)?gradient_checkpointing": "the new names are not in transformers 5.17 yet",
    "LightningCLI's args parameter": "the door takes its own options out of the words that it hands on",
    "The number of training batches": "log_every_n_steps counts optimizer steps",
    "Checkpoint directory .* exists": "a run folder is used again on purpose",
}


class Terminal(logging.Handler):
    """Writes lines to standard error, above a progress bar if there is one, which a plain write would tear."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        tqdm.write(self.format(record), file=sys.stderr)


class UntilRunFolder(logging.handlers.MemoryHandler):
    """Keeps the lines that come before the run folder exists, and then hands on each at once."""

    def __init__(self) -> None:
        super().__init__(capacity=10_000, flushOnClose=False)

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802 (logging's name)
        """Whether there is a file to hand it on to."""
        return self.target is not None


def set_up_logging(level: str = "info") -> None:
    """Send this project's events to the terminal, and keep them for `run.log`.

    Of several processes the first one tells the story, and the others speak of trouble only. `run.log` gets the whole
    story even where the terminal is to be quieter.

    Args:
        level: the least level that the terminal shows, one of `LEVELS`; at `debug`, Lightning's own lines too.
    """
    logger = logging.getLogger("kyon_pl")
    chosen, rank = LEVELS[level], rank_of(os.environ)
    terminal, kept = Terminal(chosen), UntilRunFolder()
    terminal.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s"))
    logger.handlers = [terminal, kept]
    silent = rank > 0 and chosen > logging.DEBUG
    logger.setLevel(logging.WARNING if silent else min(logging.INFO, chosen))
    logger.propagate = False
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    threading.excepthook = report_thread
    # PEFT imports it where it is installed, and it regrets a kernel that only a CPU would use
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quiet_libraries(level: str = "info") -> None:
    """Have Lightning and its advertisements keep still; it sets the level of its own log when it is imported."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.INFO if level == "debug" else logging.WARNING)


def write_run_log(folder: Path, rank: int) -> None:
    """Write the lines so far, and all that follow, into the `run.log` of a folder, behind what is there.

    Args:
        folder: of the run; it is made if need be.
        rank: of this process; it stands in each line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / RUN_LOG, encoding="utf-8")
    file.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(levelname)-7s %(message)s"))
    for handler in logging.getLogger("kyon_pl").handlers:
        if isinstance(handler, UntilRunFolder):
            handler.setTarget(file)
            handler.flush()


def rank_of(environment: Mapping[str, str]) -> int:
    """The number of this process among those of a run, as torchrun, SLURM or Lightning tell it."""
    told = (environment.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next((number for number in told if number), 0))


def from_here(path: str | Path) -> Path:
    """A path as it is best typed in this folder."""
    path = Path(path).absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def report_thread(failure: threading.ExceptHookArgs) -> None:
    """What a library's own thread died of, as Python says it; a full disk stops the main thread too, which says so."""
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno == errno.ENOSPC):
        threading.__excepthook__(failure)
