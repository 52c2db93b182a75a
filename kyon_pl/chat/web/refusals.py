"""One line a minute in the log for requests that were refused or that failed."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable

log = logging.getLogger(__name__)

LOG_SECONDS = 60


class RefusalLog(logging.Filter):
    """Counts requests that were refused, and logs at most one line a minute.

    As a filter of a web server's logger it does the same for requests that fail there: a request must not be able to
    fill the terminal with tracebacks. The level `debug` shows them.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock, self._lock = clock, threading.Lock()
        self._next = -float("inf")
        self._count = 0

    def add(self, words: str) -> None:
        """Count a request, and log it if no line was logged in the last minute."""
        with self._lock:
            self._count += 1
            if self._clock() < self._next:
                return
            count, self._count, self._next = self._count, 0, self._clock() + LOG_SECONDS
        others = f"; {count - 1} others since the last such line" if count > 1 else ""
        log.warning("web: refused %s%s", words, others)

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace a warning or an error of the server by a line of this log."""
        if record.levelno < logging.WARNING:
            return True
        words = record.getMessage().strip()
        if record.exc_info and (error := record.exc_info[1]):
            *_, frame = traceback.extract_tb(error.__traceback__)
            words = f"{words}: {type(error).__name__} in {frame.filename}:{frame.lineno}"
            log.debug("web: %s", words, exc_info=record.exc_info)
        self.add(words)
        return False
