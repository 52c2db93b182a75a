"""The password of the page: where it comes from, and how often it can be guessed."""

from __future__ import annotations

import getpass
import hmac
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable

from kyon_pl.disk import expand_home
from kyon_pl.errors import MissingFileError, SettingError

PASSWORD = "KYON_PL_WEB_PASSWORD"
FREE_GUESSES = 5  # of an address; each further one has to wait twice as long as the one before
MAX_WAIT_SECONDS = 60
FORGET_SECONDS = 900  # after this time without a guess, an address starts anew
MAX_ADDRESSES = 4096  # in memory; the one with the oldest guess is forgotten first


class PasswordGuesses:
    """Slows down wrong passwords, per address.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guesses: OrderedDict[str, tuple[int, float]] = OrderedDict()  # number, time of the last

    def begin(self, address: str) -> int:
        """Count a guess, before it is known whether it is right, so that guesses at the same time are counted.

        Args:
            address: of the visitor.

        Returns:
            Seconds to wait before the next guess; 0 if this one is allowed. A guess that is too early is not counted.
        """
        number, last = self._guesses.get(address, (0, -math.inf))
        passed = self._clock() - last
        if passed > FORGET_SECONDS:
            number = 0
        wait = min(2 ** min(number - FREE_GUESSES, 30), MAX_WAIT_SECONDS) if number >= FREE_GUESSES else 0
        if passed < wait:
            return math.ceil(wait - passed)
        self._guesses[address] = number + 1, self._clock()
        self._guesses.move_to_end(address)
        if len(self._guesses) > MAX_ADDRESSES:
            self._guesses.popitem(last=False)
        return 0

    def forget(self, address: str) -> None:
        """Forget the guesses of an address, after the right password."""
        self._guesses.pop(address, None)


def read_password(file: str | None, ask: bool) -> str | None:
    """The password, from the keyboard, the file or the environment; None if there is none.

    Raises:
        MissingFileError: there is no such file.
        SettingError: it is empty, or the file cannot be read.
    """
    if ask:
        try:
            password: str | None = getpass.getpass("password of the page: ")
        except (EOFError, UnicodeDecodeError):
            raise SettingError("password", "none was typed", "Type it, or pass --password_file FILE") from None
    elif file:
        path = expand_home(file)
        fix = "Write the password to it, in one line of UTF-8"
        if not path.is_file():
            raise MissingFileError(str(path), "there is no such file", fix)
        try:
            password = (path.read_text(encoding="utf-8").splitlines() or [""])[0]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(str(path), f"it cannot be read ({type(error).__name__})", fix) from error
    else:
        password = os.environ.get(PASSWORD)
    if password is not None and not password.strip():
        raise SettingError("password", "it is empty", f"Set one; for none, unset {PASSWORD} and pass no option")
    return password


def is_password(given: str, password: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(errors="surrogatepass"), password.encode(errors="surrogatepass"))
