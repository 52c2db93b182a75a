"""A chat in the terminal."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace

from kyon_pl.chat.conversation import MAX_QUESTION_CHARACTERS, Conversation, check_has_turns
from kyon_pl.chat.history import read_history, write_history
from kyon_pl.chat.model import ChatReply, Sampling, sampling_for
from kyon_pl.chat.role_play import RolePlay
from kyon_pl.disk import expand_home
from kyon_pl.errors import KyonError, SettingError
from kyon_pl.language import localized
from kyon_pl.logs import from_here, replace_control_characters

PROMPT = "> "


@dataclass
class Terminal:
    """Reads questions and commands, and streams replies.

    Attributes:
        conversation: the conversation so far.
        sampling: how tokens are chosen.
        load_role: loads a role by the name of its folder.
        compares: whether the base model replies too.
        chosen: temperature and top_p as the user set them; None: those of `sampling_for`, which follow the role.
        as_json: print a line of JSON for each question, see `json_line`, and no prompt for the next one.
    """

    conversation: Conversation
    sampling: Sampling
    load_role: Callable[[str], RolePlay]
    compares: bool = False
    chosen: tuple[float | None, float | None] = (None, None)
    as_json: bool = False

    def run(self) -> None:
        """Chat until /quit or the end of the input."""
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        history = read_history()
        try:
            while (line := self._read()) is not None:
                self._handle(line)
        except SystemExit:
            pass
        finally:
            write_history(history)

    def _read(self) -> str | None:
        while True:
            try:
                return replace_control_characters(read_line("" if self.as_json else PROMPT)).strip()
            except EOFError:
                if not self.as_json:
                    print()
                return None
            except KeyboardInterrupt:
                _say("\n(Ctrl-D or /quit ends the program)")

    def _handle(self, line: str) -> None:
        try:
            if line.startswith("/"):
                name, _, argument = line.partition(" ")
                self._command(name)(argument.strip())
            elif line:
                self._ask(line)
        except KyonError as error:
            print(replace_control_characters(localized(error)), file=sys.stderr if self.as_json else sys.stdout)
        except OSError as error:
            _say(f"{error.filename or line}: {error.strerror}")
        except MemoryError:
            _say("\n(out of memory; the conversation is as before)")
        except KeyboardInterrupt:
            _say("\n(interrupted; the conversation is as before)")

    def _command(self, name: str) -> Callable[[str], None]:
        if name not in COMMANDS:
            raise SettingError(name, "there is no such command", "/help lists them")
        command: Callable[[str], None] = getattr(self, COMMANDS[name][0])
        return command

    def _ask(self, typed: str) -> None:
        if self.as_json:
            print(json_line(self.conversation, typed, self.sampling, self.compares), flush=True)
            return
        _end_reply(self.conversation.ask(typed, self.sampling, print_piece))
        if self.compares and self.conversation.model.adapters:
            print_piece(localized("base: "))
            _end_reply(self.conversation.compare(self.sampling, print_piece))

    def help(self, argument: str) -> None:
        """List the commands."""
        for name, (_, text) in COMMANDS.items():
            print(f"{name:<12}{localized(text)}")

    def reset(self, argument: str) -> None:
        """Start a new conversation."""
        self.conversation.turns.clear()
        _say("(a new conversation)")

    def undo(self, argument: str) -> None:
        """Remove the last turn.

        Raises:
            SettingError: there is none.
        """
        check_has_turns("/undo", self.conversation.turns)
        _say(f"(removed: {self.conversation.turns.pop().typed})")

    def retry(self, argument: str) -> None:
        """Ask the last question again, with the next seed.

        Raises:
            SettingError: there is none.
            KyonError: the question cannot be asked; the turn stays as it was.
        """
        check_has_turns("/retry", self.conversation.turns)
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        turns = self.conversation.turns
        number, last = len(turns), turns.pop()
        try:
            self._ask(last.typed)
        finally:
            if len(turns) < number:
                turns.append(last)

    def system(self, argument: str) -> None:
        """Set or show the system prompt.

        Raises:
            SettingError: a role is played.
        """
        if self.conversation.role:
            raise SettingError("/system", "a role has its own system prompt", "Leave the role first: /character none")
        if argument:
            self.conversation.system = argument
            self.reset("")
        system = self.conversation.system
        _say(f"(system prompt: {system})" if system else "(system prompt: none)")

    def character(self, argument: str) -> None:
        """Play another role, or none."""
        if argument:
            self.conversation.role = None if argument == "none" else self.load_role(argument)
            self.sampling = sampling_for(self.sampling, *self.chosen, plays_role=self.conversation.role is not None)
            self.reset("")
        role = self.conversation.role
        _say(f"(role: {role.role.name})" if role else "(role: none)")

    def adapter(self, argument: str) -> None:
        """Switch to another adapter, or list the adapters.

        Raises:
            SettingError: the model has no adapter, or none of that name.
        """
        names = [*self.conversation.model.adapters]
        if not names:
            raise SettingError("/adapter", "a merged model has none", "Load its adapter instead")
        if argument and argument not in names:
            raise SettingError("/adapter", f"there is no {argument!r}", f"Name one of: {', '.join(names)}")
        self.conversation.adapter = argument or self.conversation.adapter or names[0]
        others = ", ".join(name for name in names if name != self.conversation.adapter)
        chosen = self.conversation.adapter
        _say(f"(adapter: {chosen}; others: {others})" if others else f"(adapter: {chosen}; others: none)")

    def save(self, argument: str) -> None:
        """Append the conversation to a file, as one row of messages.

        Raises:
            SettingError: there is no turn, no file is named, or it cannot be written.
        """
        check_has_turns("/save", self.conversation.turns)
        if not argument:
            raise SettingError("/save", "no file is named", "Write /save FILE.jsonl")
        file = expand_home(argument)
        row = json.dumps({"messages": self.conversation.messages()}, ensure_ascii=False)
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(row + "\n")
        except OSError as error:
            raise SettingError("/save", f"{file}: {error.strerror}", "Name another file") from error
        _say(f"(added to {from_here(file)} as a training row)")

    def params(self, argument: str) -> None:
        """Show the sampling parameters, or set one: /params temperature 0.8.

        Raises:
            SettingError: no such parameter, or a value that is not a number or is out of range.
        """
        if argument:
            name, _, value = argument.replace("=", " ").partition(" ")
            types = {field.name: type(getattr(self.sampling, field.name)) for field in fields(self.sampling)}
            if name not in types:
                raise SettingError("/params", f"there is no {name!r}", f"Set one of: {', '.join(types)}")
            try:
                number = types[name](value.strip())
            except ValueError:
                raise SettingError("/params", f"{name} {value!r} is no number", "Write /params NAME NUMBER") from None
            self.sampling = replace(self.sampling, **{name: number})
            self.chosen = (
                self.sampling.temperature if name == "temperature" else self.chosen[0],
                self.sampling.top_p if name == "top_p" else self.chosen[1],
            )
        print(", ".join(f"{name} {value}" for name, value in asdict(self.sampling).items()))

    def compare(self, argument: str) -> None:
        """Turn the base model's reply on or off.

        Raises:
            SettingError: the model is merged.
        """
        if not self.conversation.model.adapters:
            raise SettingError("/compare", "a merged model has no separate base", "Load its adapter instead")
        self.compares = not self.compares
        _say("(base model replies too: yes)" if self.compares else "(base model replies too: no)")

    def quit(self, argument: str) -> None:
        """End the program."""
        raise SystemExit


COMMANDS = {
    "/help": ("help", "list the commands"),
    "/reset": ("reset", "start a new conversation"),
    "/undo": ("undo", "remove the last question and its reply"),
    "/retry": ("retry", "ask the last question again, with the next seed"),
    "/system": ("system", "TEXT: set the system prompt and start a new conversation"),
    "/character": ("character", "FOLDER or none: play a role and start a new conversation"),
    "/adapter": ("adapter", "NAME: switch to another adapter; without a name, list them"),
    "/compare": ("compare", "turn the base model's reply on or off"),
    "/params": ("params", "NAME NUMBER: set temperature, top_p, repetition_penalty, max_new_tokens or seed"),
    "/save": ("save", "FILE.jsonl: append the conversation as a training row"),
    "/quit": ("quit", "end the program, like Ctrl-D"),
}


def json_line(conversation: Conversation, typed: str, sampling: Sampling, compares: bool) -> str:
    """Ask a question; the question as typed, the exact prompt, the reply and whether the model ended it, as JSON.

    Args:
        conversation: gets the turn.
        typed: the question.
        sampling: how tokens are chosen.
        compares: whether to add the base model's reply as `base`.

    Raises:
        KyonError: the question cannot be asked.
    """
    reply = conversation.ask(typed, sampling)
    prompt = conversation.prompt_text(sampling.max_new_tokens)
    answer: dict[str, object] = {"question": typed, "prompt": prompt, "reply": reply.text, "stopped": reply.stopped}
    if compares and conversation.model.adapters:
        answer["base"] = conversation.compare(sampling).text
    return json.dumps(answer, ensure_ascii=False)


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


def _say(text: str) -> None:
    print(replace_control_characters(localized(text)))


def print_piece(text: str) -> None:
    """Print a piece of a reply and flush."""
    sys.stdout.write(replace_control_characters(text))
    sys.stdout.flush()


def _end_reply(reply: ChatReply) -> None:
    print("" if reply.stopped else " […]")
