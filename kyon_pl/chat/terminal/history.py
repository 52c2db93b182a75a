"""The file of typed lines that the arrow keys recall. A chat goes on without it."""

from __future__ import annotations

import logging
import os
import readline
from pathlib import Path

log = logging.getLogger(__name__)

HISTORY_LINES = 1000


def read_history() -> Path | None:
    """Recall the lines of earlier chats.

    Returns:
        The file to write at the end. None if it cannot be used, which is logged.
    """
    try:
        file = history_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            readline.read_history_file(file)
    except (OSError, RuntimeError) as error:
        _log_unused(error)
        return None
    readline.set_history_length(HISTORY_LINES)
    return file


def write_history(file: Path | None) -> None:
    """Write the typed lines; a failure is logged.

    Args:
        file: from `read_history`; None: they are not kept.
    """
    if file:
        try:
            readline.write_history_file(file)
        except OSError as error:
            _log_unused(error)


def history_file() -> Path:
    """The path of the file.

    Raises:
        RuntimeError: there is no home folder.
    """
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "kyon_pl" / "chat_history"


def _log_unused(error: OSError | RuntimeError) -> None:
    log.warning("typed lines are not kept for the next chat: %s", error)
