"""ASGI middleware of the page: what a request may be, before Gradio reads it, and the headers of every response."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse

from kyon_pl.chat.web.inputs import Call, PageInputs, check_cancel, check_reset
from kyon_pl.chat.web.language import REFUSALS, speaks_chinese
from kyon_pl.chat.web.passwords import PasswordGuesses
from kyon_pl.chat.web.refusals import RefusalLog
from kyon_pl.chat.web.shares import Place, QueueShares, is_loopback, visitor_address
from kyon_pl.errors import SettingError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    # nothing is loaded from other hosts, whatever a message contains
    b"content-security-policy": (
        b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        b"style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
    ),
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
# What the page and Gradio's Python client ask for. Gradio has more: uploads, files, a proxy, calls beside the queue.
API = "/gradio_api"
JOIN, DATA, CANCEL, LOGIN = f"{API}/queue/join", f"{API}/queue/data", f"{API}/cancel", "/login"
CALL_PREFIX = f"{API}/run/"
GET_PATHS = {
    *("", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", "/logout", DATA),
    *(f"{API}/{name}" for name in ("app_id", "info", "login_check", "startup-events", "theme.css", "token", "user")),
}
GET_PREFIXES = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")
POST_PATHS = {JOIN, CANCEL, LOGIN, f"{API}/reset"}
PLACE = "place"  # the state of a request that calls a function has its place in the queue
BYTES_PER_CHARACTER = 12  # JSON can write a character as two escapes, \uXXXX\uXXXX
BYTES_BESIDE_MESSAGE = 16_384


class Refused(Exception):  # noqa: N818 (not an error of the server)
    """A request that is answered with an error status.

    Attributes:
        status: HTTP status.
        reason: for the visitor.
        headers: of the response.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


class SecurityHeaders:
    """ASGI middleware that adds security headers to every response.

    Args:
        app: the application.
        headers: by name, in lower case.
    """

    def __init__(self, app: ASGIApp, headers: Mapping[bytes, bytes] = HEADERS) -> None:
        self.app, self.headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [(name, value) for name, value in message["headers"] if name not in self.headers]
                message["headers"] = [*others, *self.headers.items()]
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


@dataclass
class PageGuard:
    """Refuses requests that the page does not send.

    Other hosts' pages, unknown routes, bodies that are too long, values that a component cannot have, more than a
    visitor's share of the queue, and passwords that are guessed too fast. Checked values are passed on, and nothing
    else of the request's JSON.

    Attributes:
        app: the application.
        host: address that the server listens on. If it is of this machine only, requests must name this machine too:
            another name that resolves to it belongs to another site (DNS rebinding).
        message_characters: maximum length of a message; bounds the body of a request.
        inputs: functions and values of the page.
        shares: of the queue.
        guesses: of the password.
        refusals: the log of what was refused.
        conversation_bytes: maximum length of a request with a whole conversation.
    """

    app: ASGIApp
    host: str
    message_characters: int
    inputs: PageInputs
    shares: QueueShares
    guesses: PasswordGuesses
    refusals: RefusalLog
    conversation_bytes: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        try:
            await self._answer(scope, receive, send)
        except Refused as refused:
            await self._refuse(refused, scope, receive, send)
        except SettingError as error:
            await self._refuse(Refused(400, str(error)), scope, receive, send)

    async def _refuse(self, refused: Refused, scope: Scope, receive: Receive, send: Send) -> None:
        self.refusals.add(f"{refused.status} {scope['method']} {scope['path'][:80]}: {refused.reason}")
        is_chinese = speaks_chinese(Headers(scope=scope).get("accept-language", ""))
        reason = REFUSALS.get(refused.status, refused.reason) if is_chinese else refused.reason
        response = JSONResponse({"detail": reason}, refused.status, refused.headers)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        check_site(self.host, headers)
        path = scope["path"].rstrip("/")
        is_call = path == JOIN or path.startswith(CALL_PREFIX)
        if scope["method"] in ("GET", "HEAD"):
            if path not in GET_PATHS and not path.startswith(GET_PREFIXES):
                raise Refused(404, "there is no such route")
            await self._get(path, scope, receive, send)
            return
        if scope["method"] != "POST" or not (is_call or path in POST_PATHS):
            raise Refused(404, "there is no such route")
        longest = max(self._message_bytes, self.conversation_bytes) if is_call else self._message_bytes
        body = await self._read(headers, receive, longest)
        if path == LOGIN:
            await self._login(body, scope, receive, send)
            return
        if not headers.get("content-type", "").startswith("application/json"):
            raise Refused(415, "the request is no JSON")  # a page of another site can send other types unasked
        if is_call:
            call = self.inputs.check_call(body, path.removeprefix(CALL_PREFIX))
            if len(body) > self._message_bytes and not call.holds_conversation:
                raise _too_long(self._message_bytes)
            await self._call(call, path == JOIN, scope, receive, send)
        elif path == CANCEL:
            cancel = check_cancel(body)
            self.shares.cancel(cancel.session, cancel.event_id)
            await self.app(scope, _receive_again(cancel.body, receive), send)
        else:
            await self.app(scope, _receive_again(check_reset(body), receive), send)

    @property
    def _message_bytes(self) -> int:
        return BYTES_BESIDE_MESSAGE + BYTES_PER_CHARACTER * self.message_characters

    async def _read(self, headers: Headers, receive: Receive, longest: int) -> bytes:
        """The body; what is longer is not read to its end."""
        if int(headers.get("content-length", "0")) > longest:
            raise _too_long(longest)
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > longest:
                raise _too_long(longest)
        return bytes(body)

    async def _get(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(send)
        try:
            await self.app(scope, receive, answer)
        finally:
            if path == DATA and answer.status == 200:  # with its stream, Gradio removes the waiting events of a session
                self.shares.cancel(QueryParams(scope["query_string"]).get("session_hash", ""))

    async def _login(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        address, answer = _address(scope), _Answer(send)
        if wait := self.guesses.begin(address):
            raise Refused(429, f"too many wrong passwords; wait {wait} s", {"retry-after": str(wait)})
        await self.app(scope, _receive_again(body, receive), answer)
        if answer.status == 200:
            self.guesses.forget(address)

    async def _call(self, call: Call, is_queued: bool, scope: Scope, receive: Receive, send: Send) -> None:
        place = self.shares.join(call.session, _address(scope)) if is_queued else Place(call.session)
        if place is None:
            reason = f"the queue is full: one visitor can wait with {self.shares.places} of {self.shares.queue_size}"
            raise Refused(503, reason, {"retry-after": "5"})
        scope["state"] = {**scope.get("state", {}), PLACE: place}
        answer = _Answer(send, keeps_body=is_queued)
        try:
            await self.app(scope, _receive_again(call.body, receive), answer)
        finally:
            if is_queued and answer.status == 200:
                place.event_id = json.loads(answer.body)["event_id"]
            else:
                place.leave()


def check_site(listening: str, headers: Headers) -> None:
    """Check that a request comes from the server's own page: another site's must not talk to it through the browser.

    Args:
        listening: address that the server listens on.
        headers: of the request.

    Raises:
        Refused: the request names another host, or comes from a page of another site.
    """
    host = headers.get("host", "")
    if is_loopback(listening) and not is_loopback(_hostname(host)):
        raise Refused(421, "the server answers to localhost only; a proxy must send `Host: localhost`")
    own_sites = {host, *headers.get("x-forwarded-host", "").replace(" ", "").split(",")} - {""}
    origin = headers.get("origin")  # null or a site, as https://chat.example:8000
    if origin is not None and origin.partition("://")[2] not in own_sites:
        raise Refused(403, "the request comes from a page of another site")


class _Answer:
    """Sends what an application sends, and keeps the status and optionally the body."""

    def __init__(self, send: Send, keeps_body: bool = False) -> None:
        self.send, self.keeps_body, self.status, self.body = send, keeps_body, 0, bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif self.keeps_body:
            self.body += message.get("body", b"")
        await self.send(message)


def _too_long(longest: int) -> Refused:
    return Refused(413, f"the request is longer than {longest:,} bytes")


def _receive_again(body: bytes, receive: Receive) -> Receive:
    """Receives a body that was read, and then what `receive` does."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return visitor_address(client[0] if client else None)


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
