"""The lines of the chat in the terminal: what is typed, and how replies are printed."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from kyon_pl.chat.conversation import MAX_QUESTION_CHARACTERS
from kyon_pl.logs import replace_control_characters

PROMPT = "> "


def read_line(prompt: str = PROMPT) -> str:
    """Read a line: from a terminal with readline; from a pipe not much more than a message can have.

    Args:
        prompt: to show before it.

    Raises:
        EOFError: there are no more lines.
    """
    if sys.stdin.isatty():
        return input(prompt)
    print(prompt, end="", flush=True)
    line = rest = sys.stdin.readline(MAX_QUESTION_CHARACTERS + 1)
    while rest and not rest.endswith("\n"):
        rest = sys.stdin.readline(MAX_QUESTION_CHARACTERS)
    if not line:
        raise EOFError
    return line


def print_piece(text: str) -> None:
    """Print a piece of a reply and flush."""
    sys.stdout.write(replace_control_characters(text))
    sys.stdout.flush()


@dataclass
class NamedReply:
    """Prints a reply behind the name of its speaker, unless the reply begins with it or another name of the role.

    Attributes:
        names: of the role; the first is printed. Empty: none is.
        held: the beginning of the reply, until it is clear how it begins; None afterwards.
    """

    names: tuple[str, ...]
    held: str | None = ""

    def print_piece(self, text: str) -> None:
        """Print a piece of the reply, and the name before the first one."""
        if self.held is None:
            print_piece(text)
            return
        self.held += text
        begun = self.held.lstrip()
        if not any(name.startswith(begun) for name in self.names):
            self.end()

    def end(self) -> None:
        """Print what is held."""
        if self.held is not None:
            text, self.held = self.held, None
            names_itself = text.lstrip().startswith(tuple(f"{name}{colon}" for name in self.names for colon in ":："))
            print_piece(text if names_itself or not self.names else f"{self.names[0]}: {text}")
