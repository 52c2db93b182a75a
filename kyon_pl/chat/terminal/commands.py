"""The commands of the chat in the terminal: their names, which one a beginning or a typo means, and Tab."""

from __future__ import annotations

import readline
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from kyon_pl.disk import expand_home
from kyon_pl.errors import SettingError

COMMANDS = {
    "/help": "list the commands",
    "/reset": "start a new conversation",
    "/undo": "remove the last question and its reply",
    "/retry": "ask the last question again, with another seed; a greedy reply is sampled",
    "/memories": "show the memories in the prompt of the last question",
    "/system": "TEXT: set the system prompt and start a new conversation",
    "/character": "FOLDER or none: play a role and start a new conversation",
    "/adapter": "NAME: switch to another adapter; without a name, list them",
    "/compare": "turn the base model's reply on or off",
    "/params": "NAME NUMBER: set temperature, top_p, repetition_penalty, max_new_tokens or seed",
    "/save": "FILE.jsonl: append the conversation as a training row",
    "/quit": "end the program, like Ctrl-D",
}
"""Names and meanings; the method of `Terminal` has the same name."""

Choices = Mapping[str, Callable[[str], Iterable[str]]]
"""By command: from the beginning of an argument to the arguments that it can have."""

_LONGEST_TYPO = 20  # characters, beyond which nothing is suggested


def find_command(typed: str) -> str:
    """The command that is meant: by its name, or by a beginning of it that no other one has.

    Args:
        typed: with its slash.

    Raises:
        SettingError: there is none, or more than one.
    """
    if typed in COMMANDS:
        return typed
    begun = [name for name in COMMANDS if name.startswith(typed)] if len(typed) > 1 else []
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise SettingError(typed, f"it can be {' or '.join(begun)}", "Type one letter more, or press Tab")
    close = get_close_matches(typed, COMMANDS, n=1, cutoff=0.6) if len(typed) <= _LONGEST_TYPO else []
    suggestion = f"Did you mean {close[0]}? " if close else ""
    raise SettingError(typed, "there is no such command", f"{suggestion}/help lists them")


def completions(line: str, choices: Choices) -> list[str]:
    """What a line with a command can become; questions are not completed.

    Args:
        line: up to the cursor.
        choices: arguments of commands.

    Returns:
        Whole lines, in the order of the alphabet.
    """
    name, space, argument = line.partition(" ")
    begun = [command for command in COMMANDS if command.startswith(name)] if name[:1] == "/" else []
    if not space:
        return [f"{command} " for command in sorted(begun)]
    command = name if name in COMMANDS else begun[0] if len(begun) == 1 else ""
    offered = choices[command](argument) if command in choices else ()
    return [f"{name} {choice}" for choice in sorted({*offered}) if choice.startswith(argument)]


def paths(begun: str) -> Iterator[str]:
    """The files and folders whose paths begin with a text; hidden ones only if the text names a dot.

    Args:
        begun: the text; `~` is the home folder.
    """
    typed, slash, name = begun.rpartition("/")
    folder = expand_home(typed or slash or ".")
    try:
        entries = sorted(folder.iterdir())
    except OSError:  # there is no such folder, or it may not be read
        return
    for entry in entries:
        if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith(".")):
            yield f"{typed}{slash}{entry.name}{'/' if _is_folder(entry) else ''}"


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def complete_with_tab(choices: Choices) -> None:
    """Make Tab complete commands and their arguments; only if the input is a terminal.

    Args:
        choices: arguments of commands.
    """
    if not sys.stdin.isatty():
        return
    found: list[str] = []

    def complete(word: str, number: int) -> str | None:
        if number == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            found[:] = [whole[len(line) - len(word) :] for whole in completions(line, choices)]
        return found[number] if number < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    binding = "bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete"
    readline.parse_and_bind(binding)
