"""What reaches the terminal: this project's own lines, and of the libraries only what a user can act on."""

from __future__ import annotations

import errno
import logging
import os
import threading
import warnings

# warnings that libraries raise about each other, and about choices that are made on purpose here: the text's
# beginning, and why
IGNORED_WARNINGS = {
    "`loftq_config` specified": "the parser writes out all of PEFT's defaults",
    ".*does not have many workers": "data.workers says how many, and why",
    r"\s*(``|By default only one|skip_none|ArgumentParser)": "Lightning's use of jsonargparse",
    "`isinstance\\(treespec": "Lightning's use of torch",
    "`(is_)?gradient_checkpointing": "the new names are not in transformers 5.17 yet",
    "LightningCLI's args parameter": "main(args) is how tests and programs call the command line",
    "The number of training batches": "log_every_n_steps counts optimizer steps",
    "Checkpoint directory .* exists": "a run folder is used again on purpose",
}


def set_up_logging() -> None:
    """Send this project's events to standard error as plain lines; Lightning and its advertisements keep still."""
    logger = logging.getLogger("kyon_pl")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    # of several processes on a machine, torchrun's or Lightning's, the first one speaks
    logger.setLevel(logging.INFO if os.environ.get("LOCAL_RANK", "0") == "0" else logging.WARNING)
    logger.propagate = False
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    threading.excepthook = report_thread


def report_thread(failure: threading.ExceptHookArgs) -> None:
    """What a library's own thread died of, as Python says it; a full disk stops the main thread too, which says so."""
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno == errno.ENOSPC):
        threading.__excepthook__(failure)
