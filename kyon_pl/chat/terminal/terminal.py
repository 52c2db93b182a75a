"""A chat in the terminal."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace

from kyon_pl.chat.conversation import Conversation, check_has_turns
from kyon_pl.chat.model import ChatReply, Sampling, sampling_for, sampling_for_retry
from kyon_pl.chat.role_play import RolePlay
from kyon_pl.chat.terminal.commands import COMMANDS, Choices, complete_with_tab, find_command, paths
from kyon_pl.chat.terminal.history import read_history, write_history
from kyon_pl.chat.terminal.lines import PROMPT, NamedReply, print_piece, read_line
from kyon_pl.demo.grammar import CHARACTERS
from kyon_pl.disk import expand_home
from kyon_pl.errors import KyonError, SettingError
from kyon_pl.language import localized
from kyon_pl.logs import from_here, replace_control_characters


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
        complete_with_tab(self._choices())
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
                self._ask(line, self.sampling)
        except KyonError as error:
            print(replace_control_characters(localized(error)), file=sys.stderr if self.as_json else sys.stdout)
        except OSError as error:
            _say(f"{error.filename or line}: {error.strerror}")
        except MemoryError:
            _say("\n(out of memory; the conversation is as before)")
        except KeyboardInterrupt:
            _say("\n(interrupted; the conversation is as before)")

    def _command(self, typed: str) -> Callable[[str], None]:
        command: Callable[[str], None] = getattr(self, find_command(typed)[1:])
        return command

    def _choices(self) -> Choices:
        """What Tab offers as arguments."""
        return {
            "/adapter": lambda begun: self.conversation.model.adapters,
            "/character": lambda begun: ["none", "demo", *(f"demo/{role.name}" for role in CHARACTERS), *paths(begun)],
            "/params": lambda begun: [f"{name} " for name in asdict(self.sampling)],
            "/save": paths,
        }

    def _ask(self, typed: str, sampling: Sampling) -> None:
        if self.as_json:
            print(json_line(self.conversation, typed, sampling, self.compares), flush=True)
            return
        printed = NamedReply(tuple(self._names()))
        reply = self.conversation.ask(typed, sampling, printed.print_piece)
        printed.end()
        _end_reply(reply)
        if self.compares and self.conversation.model.adapters:
            print_piece(localized("base: "))
            _end_reply(self.conversation.compare(sampling, print_piece))

    def _names(self) -> Iterator[str]:
        """The names of the role, the one to print first; none without a role."""
        if self.conversation.role:
            role = self.conversation.role.role
            yield from dict.fromkeys((role.name, *role.aliases))

    def help(self, argument: str) -> None:
        """List the commands."""
        for name, text in COMMANDS.items():
            print(f"{name:<12}{localized(text)}")
        _say("A beginning that only one command has is enough, such as /mem. Tab completes names.")

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
        """Ask the last question again: each time with another seed, and not greedily, which would give the same reply.

        Raises:
            SettingError: there is none.
            KyonError: the question cannot be asked; the turn stays as it was.
        """
        turns = self.conversation.turns
        check_has_turns("/retry", turns)
        number, last = len(turns), turns.pop()
        try:
            self._ask(last.typed, self._sampling_of_retry(last.retries + 1))
            turns[-1] = replace(turns[-1], retries=last.retries + 1)
        finally:
            if len(turns) < number:
                turns.append(last)

    def _sampling_of_retry(self, retries: int) -> Sampling:
        sampling = sampling_for_retry(self.sampling, retries, samples=True)
        if not self.sampling.temperature:
            said = f"(temperature {sampling.temperature} for this reply: with temperature 0 it would be the same again)"
            print(localized(said), file=sys.stderr if self.as_json else sys.stdout)
        return sampling

    def memories(self, argument: str) -> None:
        """Show the memories of the last question.

        Raises:
            SettingError: there is none.
        """
        check_has_turns("/memories", self.conversation.turns)
        memories = self.conversation.memories()
        for number, memory in enumerate(memories, start=1):
            print(f"{number}. {replace_control_characters(memory)}")
        if not memories:
            _say("(no memories: no role is played, or it has none)")

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


def _say(text: str) -> None:
    print(replace_control_characters(localized(text)))


def _end_reply(reply: ChatReply) -> None:
    print("" if reply.stopped else " […]")
