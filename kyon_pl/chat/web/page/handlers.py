"""What the page's events do on the server. Arguments are the request and the values of the inputs, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from threading import Lock
from typing import Any

import gradio as gr

from kyon_pl.chat.model import Sampling
from kyon_pl.chat.web.middleware import PLACE
from kyon_pl.chat.web.page.labels import say_same, shown_errors
from kyon_pl.chat.web.page.shown import messages
from kyon_pl.chat.web.saved import read_turns
from kyon_pl.chat.web.sessions import Sessions, SessionSettings, Turns
from kyon_pl.chat.web.shares import Place
from kyon_pl.errors import DataError, SettingError
from kyon_pl.logs import replace_control_characters

Update = tuple[Any, ...]


class ReplyLock:
    """Held while a reply is generated. Gradio cancels an event without waiting for its generator to end."""

    def __init__(self) -> None:
        self.lock = Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> ReplyLock:
        return ReplyLock()  # Gradio copies the initial state for each session


class Handlers:
    """Event handlers.

    Args:
        sessions: answers the messages.
    """

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions

    def ask(
        self, request: gr.Request, message: str | None, turns: Turns, reply_lock: ReplyLock, *values: Any
    ) -> Iterator[Update]:
        """Ask. Only the first update empties the message box, so that what is typed during the reply stays."""
        leave_queue(request)
        settings, box = _settings(request, values), ""
        with reply_lock.lock:
            for update in self._stream(request, self.sessions.ask(turns, message or "", settings), settings):
                yield (box, *update)
                box = gr.skip()

    def retry(self, request: gr.Request, turns: Turns, reply_lock: ReplyLock, *values: Any) -> Iterator[Update]:
        """Ask the last question again, sampled anew."""
        leave_queue(request)
        settings = _settings(request, values)
        with reply_lock.lock:
            yield from self._stream(request, self.sessions.ask_again(turns, settings), settings)

    def again(
        self, request: gr.Request, action: str | None, turns: Turns, reply_lock: ReplyLock, *values: Any
    ) -> Iterator[Update]:
        """Ask the question of a turn again, or another text in its place. Later turns are removed."""
        leave_queue(request)
        settings, (number, text) = _settings(request, values), _action(request, action, turns, "text", str)
        if text is None:
            replies = self.sessions.ask_again(turns[: number + 1], settings)
        else:
            replies = self.sessions.ask(turns[:number], text, settings)
        with reply_lock.lock:
            yield from self._stream(request, replies, settings)

    def choose(self, request: gr.Request, action: str | None, turns: Turns, *values: Any) -> Update:
        """Show another version of a reply; later questions follow it."""
        leave_queue(request)
        number, version = _action(request, action, turns, "version", int)
        turn = turns[number]
        if version is not None and 0 <= version < len(turn.versions):
            turns = (*turns[:number], replace(turn, reply=turn.versions[version]), *turns[number + 1 :])
        return self._update(turns, _settings(request, values))

    def wait(self, request: gr.Request, reply_lock: ReplyLock) -> None:
        """Wait until no reply is generated."""
        leave_queue(request)
        with reply_lock.lock:
            pass

    def undo(self, request: gr.Request, turns: Turns, *values: Any) -> Update:
        """Remove the last turn."""
        leave_queue(request)
        return self._update(turns[:-1], _settings(request, values))

    def clear(self, request: gr.Request, role: str | None) -> Update:
        """Remove all turns."""
        leave_queue(request)
        return self._update((), SessionSettings(role or ""))

    def export(self, request: gr.Request, turns: Turns, *values: Any) -> str:
        """The conversation as a training row."""
        leave_queue(request)
        with shown_errors(request):
            return self.sessions.export(turns, _settings(request, values))

    def open(self, request: gr.Request, saved: str | None, *values: Any) -> Update:
        """Show the conversation that the browser has kept of a role; a new one if it has none, or a damaged one."""
        leave_queue(request)
        settings, turns = _settings(request, values), Turns()
        with suppress(DataError):  # page.js says that nothing came back
            turns = read_turns(saved, self.sessions.limits) if saved else turns
        return settings.role, *self._update(turns, settings)

    def bring(self, request: gr.Request, saved: str | None, *values: Any) -> Update:
        """Show the conversation of a file."""
        leave_queue(request)
        with shown_errors(request):
            turns = read_turns(saved or "", self.sessions.limits)
        return self._update(turns, _settings(request, values))

    def show_base(self, request: gr.Request, on: bool | None) -> Any:
        """Show the base model's replies, or hide them."""
        leave_queue(request)
        return gr.Column(visible=bool(on))

    def _stream(self, request: gr.Request, replies: Iterator[Turns], settings: SessionSettings) -> Iterator[Update]:
        new_turns, versions = Turns(), 0
        with shown_errors(request):
            for new_turns in replies:
                versions = max(versions, len(new_turns[-1].versions))
                yield (*self._panels(new_turns, settings, running=True), gr.skip())
        if len(new_turns[-1].versions) < versions:  # it grew as a new one
            say_same(request)
        yield self._update(new_turns, settings)

    def _update(self, turns: Turns, settings: SessionSettings) -> Update:
        memories = enumerate(turns[-1].memories if turns else (), 1)
        text = "\n\n".join(f"{number}. {replace_control_characters(memory)}" for number, memory in memories)
        return (*self._panels(turns, settings), text)

    def _panels(self, turns: Turns, settings: SessionSettings, running: bool = False) -> Update:
        role = self.sessions.roles.get(settings.role)
        shown = messages(turns, running=running, greeting=role.role.greeting if role else "")
        return turns, shown, messages(turns, of_base=True, running=running)


def leave_queue(request: gr.Request) -> None:
    """Release the visitor's place in the queue, see `kyon_pl.chat.web.middleware`."""
    place: Place = request.request.scope["state"][PLACE]
    place.leave()


def _settings(request: gr.Request, values: tuple[Any, ...]) -> SessionSettings:
    role, asker, adapter, compares, *numbers = values
    tokens, temperature, top_p, penalty, seed = numbers
    with shown_errors(request):
        if None in numbers:
            raise SettingError("parameters", "a number is missing", "Fill it in")
        sampling = Sampling(int(tokens), float(temperature), float(top_p), float(penalty), int(seed))
    return SessionSettings(role or "", asker or "", adapter or "", bool(compares), sampling)


def _action(request: gr.Request, action: str | None, turns: Turns, key: str, kind: type) -> tuple[int, Any]:
    """The turn of an action of the scripts, and the value of a key in it, which may be missing."""
    with shown_errors(request):
        try:
            given = json.loads(action or "")
        except (ValueError, RecursionError):
            given = None
        number = given.get("turn") if isinstance(given, dict) else None
        if type(number) is not int or not 0 <= number < len(turns) or type(given.get(key)) not in (kind, type(None)):
            raise SettingError("action", "there is no such turn", "Reload the page")
    return number, given.get(key)
