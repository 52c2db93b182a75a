"""A conversation in a terminal."""

from __future__ import annotations

import json
import os
import readline
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from kyon_pl.chat.conversation import Conversation
from kyon_pl.chat.role_play import RolePlay, harmless
from kyon_pl.chat.speaker import Sampling
from kyon_pl.errors import KyonError, SettingError
from kyon_pl.logs import from_here

PROMPT = "> "
HISTORY_LINES = 1000


@dataclass
class Terminal:
    """Reads questions and commands, and prints replies as they come.

    Attributes:
        conversation: so far.
        sampling: how tokens are chosen.
        play: makes a role out of the name of its folder.
        compares: whether the base replies too.
    """

    conversation: Conversation
    sampling: Sampling
    play: Callable[[str], RolePlay]
    compares: bool = False

    def run(self) -> None:
        """Until /quit or the end of the input."""
        history = history_file()
        if history.is_file():
            readline.read_history_file(history)
        readline.set_history_length(HISTORY_LINES)
        try:
            while (line := self._read()) is not None:
                self._answer(line)
        except SystemExit:
            pass
        finally:
            history.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(history)

    def _read(self) -> str | None:
        while True:
            try:
                return harmless(input(PROMPT)).strip()
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /quit ends the program)")

    def _answer(self, line: str) -> None:
        try:
            if line.startswith("/"):
                name, _, words = line.partition(" ")
                self._command(name)(words.strip())
            elif line:
                self._ask(line)
        except KyonError as error:
            print(error)

    def _command(self, name: str) -> Callable[[str], None]:
        if name not in COMMANDS:
            raise SettingError(name, "there is no such command", "/help lists them")
        command: Callable[[str], None] = getattr(self, COMMANDS[name][0])
        return command

    def _ask(self, typed: str) -> None:
        said = self.conversation.ask(typed, self.sampling, show)
        print("" if said.stopped else " […]")
        if self.compares and self.conversation.speaker.tuned:
            show("base: ")
            print("" if self.conversation.compare(self.sampling, show).stopped else " […]")

    def help(self, words: str) -> None:
        """List the commands."""
        for name, (_, text) in COMMANDS.items():
            print(f"{name:<12}{text}")

    def reset(self, words: str) -> None:
        """Forget what was said."""
        self.conversation.turns.clear()
        print("(a new conversation)")

    def undo(self, words: str) -> None:
        """Forget the last turn.

        Raises:
            SettingError: nothing has been said.
        """
        if not self.conversation.turns:
            raise SettingError("/undo", "nothing has been said", "Ask something first")
        print(f"(forgotten: {self.conversation.turns.pop().typed})")

    def retry(self, words: str) -> None:
        """Ask the last question again; where tokens are drawn, with the next seed.

        Raises:
            SettingError: nothing has been said.
            KyonError: the question cannot be asked; then it stays what was said last.
        """
        if not self.conversation.turns:
            raise SettingError("/retry", "nothing has been said", "Ask something first")
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        last = self.conversation.turns.pop()
        try:
            self._ask(last.typed)
        except KyonError:
            self.conversation.turns.append(last)
            raise

    def system(self, words: str) -> None:
        """Set or show the system prompt.

        Raises:
            SettingError: the role has its own.
        """
        if self.conversation.role:
            raise SettingError("/system", "the role has its own", "Take the role away first: /character none")
        if words:
            self.conversation.system = words
            self.reset("")
        print(f"(system prompt: {harmless(self.conversation.system) or 'none'})")

    def character(self, words: str) -> None:
        """Play another role, or none."""
        if words:
            self.conversation.role = None if words == "none" else self.play(words)
            self.reset("")
        role = self.conversation.role
        print(f"(role: {harmless(role.role.name) if role else 'none'})")

    def adapter(self, words: str) -> None:
        """Let another adapter reply, or list them.

        Raises:
            SettingError: a merged model, which has none, or no adapter of that name.
        """
        names = [*self.conversation.speaker.adapters]
        if not names:
            raise SettingError("/adapter", "a merged model has none", "Load its adapter instead")
        if words and words not in names:
            raise SettingError("/adapter", f"there is no {words!r}", f"Name one of: {', '.join(names)}")
        self.conversation.adapter = words or self.conversation.adapter or names[0]
        others = [name for name in names if name != self.conversation.adapter]
        print(harmless(f"(adapter: {self.conversation.adapter}; others: {', '.join(others) or 'none'})"))

    def save(self, words: str) -> None:
        """Write the conversation as one row of messages.

        Raises:
            SettingError: nothing has been said, no file is named, or it cannot be written.
        """
        if not self.conversation.turns:
            raise SettingError("/save", "nothing has been said", "Ask something first")
        if not words:
            raise SettingError("/save", "no file is named", "Write /save FILE.jsonl")
        file = Path(words).expanduser()
        row = json.dumps({"messages": self.conversation.messages()}, ensure_ascii=False)
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(row + "\n")
        except OSError as error:
            raise SettingError("/save", f"{file}: {error.strerror}", "Name another file") from error
        print(f"(added to {from_here(file)}, a row that fit can read)")

    def params(self, words: str) -> None:
        """Show how tokens are chosen, or change it: /params temperature 0.8.

        Raises:
            SettingError: no such number to set, a word in place of one, or one that is impossible.
        """
        if words:
            name, _, value = words.replace("=", " ").partition(" ")
            kinds = {field.name: type(getattr(self.sampling, field.name)) for field in fields(self.sampling)}
            if name not in kinds:
                raise SettingError("/params", f"there is no {name!r}", f"Set one of: {', '.join(kinds)}")
            try:
                number = kinds[name](value.strip())
            except ValueError:
                raise SettingError("/params", f"{name} {value!r} is no number", "Write /params NAME NUMBER") from None
            self.sampling = replace(self.sampling, **{name: number})
        print(", ".join(f"{name} {value}" for name, value in asdict(self.sampling).items()))

    def compare(self, words: str) -> None:
        """Let the base reply beside the tuned model, or no more.

        Raises:
            SettingError: a merged model has no base beside it.
        """
        if not self.conversation.speaker.tuned:
            raise SettingError("/compare", "a merged model has no base beside it", "Load its adapter instead")
        self.compares = not self.compares
        print(f"(the base replies too: {'yes' if self.compares else 'no'})")

    def quit(self, words: str) -> None:
        """End the program."""
        raise SystemExit


COMMANDS = {
    "/help": ("help", "this list"),
    "/reset": ("reset", "forget what was said"),
    "/undo": ("undo", "forget the last question and its reply"),
    "/retry": ("retry", "ask the last question again, with the next seed"),
    "/system": ("system", "TEXT: set the system prompt, and begin anew"),
    "/character": ("character", "FOLDER or none: play a role, and begin anew"),
    "/adapter": ("adapter", "NAME: let another of the adapters reply; without a name, list them"),
    "/compare": ("compare", "let the base reply too, or no more"),
    "/params": ("params", "NAME NUMBER: temperature, top_p, repetition_penalty, max_new_tokens, seed"),
    "/save": ("save", "FILE.jsonl: add the conversation, as a row that fit can read"),
    "/quit": ("quit", "end; so does Ctrl-D"),
}


def show(text: str) -> None:
    """Print a piece of a reply at once."""
    sys.stdout.write(harmless(text))
    sys.stdout.flush()


def history_file() -> Path:
    """Where questions are kept for the arrow keys."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "kyon_pl" / "chat_history"
