"""What the web page refuses, without a server: the ASGI application behind the middleware is a stub."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("starlette")  # comes with the extra `web`

from kyon_pl.chat.web.inputs import CONVERSATION, PageInputs
from kyon_pl.chat.web.middleware import CANCEL, DATA, JOIN, LOGIN, PLACE, PageGuard
from kyon_pl.chat.web.passwords import FREE_GUESSES, MAX_ADDRESSES, MAX_WAIT_SECONDS, PasswordGuesses
from kyon_pl.chat.web.refusals import LOG_SECONDS, RefusalLog
from kyon_pl.chat.web.shares import QueueShares, is_loopback, visitor_address

CONFIG = {
    "components": [
        {"id": 1, "type": "textbox", "props": {}},
        {"id": 2, "type": "state", "props": {}},
        {"id": 3, "type": "dropdown", "props": {"choices": [("one", "1"), ("two", "2")]}},
        {"id": 4, "type": "slider", "props": {"minimum": 0, "maximum": 2}},
        {"id": 5, "type": "number", "props": {"minimum": 0, "maximum": 9}},
        {"id": 6, "type": "checkbox", "props": {}},
        {"id": 7, "type": "textbox", "props": {"elem_id": CONVERSATION}},
    ],
    "dependencies": [
        {"id": 0, "api_name": "ask", "backend_fn": True, "inputs": [1, 2, 3, 4, 5, 6]},
        {"id": 1, "api_name": "stop", "backend_fn": False, "inputs": []},
        {"id": 8, "api_name": "open", "backend_fn": True, "inputs": [7]},
    ],
}
VALUES: list[Any] = ["Hello", None, "2", 0.5, 3, True]
CALL = {"data": VALUES, "fn_index": 0, "session_hash": "abc"}
CHARACTERS = 100
LONGEST = 16_384 + 12 * CHARACTERS
OUTSIDE = "203.0.113.7"


@dataclass
class Page:
    """A guarded page whose application answers `statuses` and keeps what it gets."""

    host: str = "127.0.0.1"
    queue_size: int = 8
    status: int = 200
    seconds: float = 0.0
    bodies: list[bytes] = field(default_factory=list)
    scopes: list[Any] = field(default_factory=list)
    received: int = 0

    def __post_init__(self) -> None:
        self.guard = PageGuard(
            self.app,
            self.host,
            CHARACTERS,
            PageInputs(CONFIG),
            QueueShares(self.queue_size),
            PasswordGuesses(lambda: self.seconds),
            RefusalLog(lambda: self.seconds),
        )

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.bodies.append((await receive())["body"] if scope["method"] == "POST" else b"")
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"event_id": f"e{len(self.scopes)}"}).encode()})

    def request(
        self,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        method: str = "POST",
        client: str = "127.0.0.1",
        pieces: Iterator[bytes] | None = None,
    ) -> int:
        """The status of the answer to a request."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        parts = pieces or iter([content])
        words = {"host": "localhost:7860", "content-type": "application/json"} | (headers or {})
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in words.items()],
            "client": (client, 1),
        }
        statuses: list[int] = []

        async def receive() -> Any:
            self.received += 1
            piece = next(parts, b"")
            return {"type": "http.request", "body": piece, "more_body": bool(pieces and piece)}

        async def send(message: Any) -> None:
            if "status" in message:
                statuses.append(message["status"])

        asyncio.run(self.guard(scope, receive, send))
        (status,) = statuses
        return status

    def join(self, session: str = "abc", client: str = "127.0.0.1") -> int:
        return self.request(JOIN, CALL | {"session_hash": session}, client=client)


def test_a_body_is_read_no_further_than_a_message_can_be() -> None:
    page = Page()
    assert page.request(JOIN, CALL, {"content-length": str(150 * 2**20)}) == 413
    assert page.received == 0
    assert page.request(JOIN, pieces=iter([b"x" * 1024] * 10_000)) == 413
    assert page.received == LONGEST // 1024 + 1
    for path in (LOGIN, CANCEL, "/gradio_api/run/ask", "/gradio_api/reset"):
        assert page.request(path, b"x" * (LONGEST + 1)) == 413
    assert page.scopes == []
    assert page.request(JOIN, CALL | {"data": ["😀" * CHARACTERS, *VALUES[1:]]}) == 200  # written as \ud83d\ude00


def test_only_a_whole_conversation_can_be_longer_than_a_message() -> None:
    page = Page()
    page.guard.conversation_bytes = 2 * LONGEST
    text = ["x" * LONGEST]
    assert page.request(JOIN, CALL | {"fn_index": 8, "data": text}) == 200
    assert page.request(JOIN, CALL | {"data": [*text, *VALUES[1:]]}) == 413
    assert page.request(JOIN, CALL | {"fn_index": 8, "data": ["x" * 2 * LONGEST]}) == 413
    assert page.request(LOGIN, b"x" * (LONGEST + 1)) == 413
    assert len(page.scopes) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "evil.example:7860"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": "localhost@evil.example"}, 421),
        ({"host": "192.168.0.7:7860"}, 421),
        ({"host": "["}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://localhost:7860"}, 200),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example", "x-forwarded-host": "evil.example"}, 421),
        ({"origin": "https://chat.example", "x-forwarded-host": "chat.example"}, 200),  # a proxy
    ],
)
def test_other_sites_cannot_talk_to_a_local_page(host: str, headers: dict[str, str], status: int) -> None:
    """A name of another site that resolves to this machine, and requests from a page of another site."""
    page = Page(host)
    assert page.request("/config", headers=headers, method="GET") == status
    assert page.request(JOIN, CALL, headers) == status


def test_a_public_page_has_any_name_and_one_site() -> None:
    page = Page("0.0.0.0")
    name = {"host": "chat.example"}
    assert page.request(JOIN, CALL, name) == 200
    assert page.request(JOIN, CALL, name | {"origin": "https://chat.example"}) == 200
    assert page.request(JOIN, CALL, name | {"origin": "https://evil.example"}) == 403


@pytest.mark.parametrize(
    "route",
    [
        "GET /openapi.json",
        "GET /gradio_api/openapi.json",
        "GET /docs",
        "GET /gradio_api/file=/etc/passwd",
        "GET /gradio_api/proxy=http://example.org",
        "GET /gradio_api/deep_link",
        "GET /monitoring/x",
        "POST /gradio_api/upload",
        "POST /gradio_api/upload/",
        "POST /gradio_api/component_server",
        "POST /gradio_api/call/ask",
        "POST /gradio_api/api/ask",
        "POST /gradio_api/process_recording",
        "POST /gradio_api/stream/x",
        "POST /config",
        "PUT /gradio_api/queue/join",
        "DELETE /",
    ],
)
def test_only_the_routes_of_the_page_are_there(route: str) -> None:
    page = Page()
    method, path = route.split()
    assert page.request(path, CALL, method=method) == 404
    assert page.scopes == []


WRONG_VALUES: dict[int, list[Any]] = {
    0: [3, ["x"], {"a": 1}, True, "half a character \ud800"],
    2: ["3", "one", 1, ["1"], {}],
    3: [None, "0.5", -0.1, 2.1, True, [], float("nan"), float("inf"), 10**400],
    4: ["3", -1, 10, False, {}],
    5: ["on", 1, 0, []],
}
WRONG_CALLS = [
    CALL | {"data": [*VALUES[:i], wrong, *VALUES[i + 1 :]]} for i in WRONG_VALUES for wrong in WRONG_VALUES[i]
]
WRONG_CALLS += [CALL | {"data": data} for data in ([], VALUES[:-1], [*VALUES, 1], None, "x", {"0": 1})]
WRONG_CALLS += [CALL | {"fn_index": number} for number in (1, 9999, -1, "0", True, 0.0, [], None, 10**400)]
WRONG_CALLS += [CALL | {"session_hash": name} for name in (None, "", "x" * 65, 7, "a/b", "a\n", ["abc"])]


@pytest.mark.parametrize("call", WRONG_CALLS, ids=lambda call: quote(json.dumps(call)[:60]))
def test_a_forged_value_does_not_reach_gradio(call: dict[str, Any]) -> None:
    page = Page()
    assert page.request(JOIN, call) == page.request("/gradio_api/run/predict", call) == 400
    assert page.scopes == []


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"null", b"\xff", b"[" * 17_000, b'{"a":' * 3_000, b"9" * 5_000])
def test_a_body_that_is_no_object(body: bytes) -> None:
    page = Page()
    for path in (JOIN, CANCEL, "/gradio_api/run/ask"):
        assert page.request(path, body) == 400
    assert page.scopes == []


def test_only_checked_values_are_passed_on() -> None:
    page = Page()
    extra = {"event_data": {"x": 1}, "trigger_id": 99, "batched": True, "simple_format": True, "event_id": "e"}
    assert page.request(JOIN, CALL | extra | {"data": [VALUES[0], "forged state", *VALUES[2:]]}) == 200
    assert page.request("/gradio_api/run/ask", {"data": VALUES, "session_hash": "abc"}) == 200
    assert [*map(json.loads, page.bodies)] == [CALL, CALL]
    assert page.request(CANCEL, {"session_hash": "abc", "fn_index": 0, "event_id": "e", "other": 1}) == 200
    assert json.loads(page.bodies[-1]) == {"session_hash": "abc", "fn_index": 0, "event_id": "e"}
    for wrong in ({"event_id": 1}, {"fn_index": "0"}, {"session_hash": None}):
        assert page.request(CANCEL, {"session_hash": "abc", "fn_index": 0, "event_id": "e"} | wrong) == 400
    assert page.request("/gradio_api/reset", {"event_id": "e", "other": float("nan")}) == 200
    assert json.loads(page.bodies[-1]) == {"event_id": "e"}
    assert page.request("/gradio_api/reset", {"event_id": float("nan")}) == 400
    assert page.request(JOIN, CALL, {"content-type": "text/plain"}) == 415  # a form of another site could send it


@pytest.mark.parametrize("queue_size", [1, 4, 8, 32])
def test_one_session_has_a_quarter_of_the_queue(queue_size: int) -> None:
    page = Page(queue_size=queue_size)
    quarter = max(1, queue_size // 4)
    statuses = [page.join() for _ in range(60)]
    assert statuses == [200] * quarter + [503] * (60 - quarter)
    assert page.join("another") == 200


def test_one_address_has_a_quarter_under_many_names() -> None:
    """Of this machine there can be a proxy, behind which all have its address."""
    page = Page("0.0.0.0")
    assert [page.join(f"s{n}", OUTSIDE) for n in range(9)] == [200] * 2 + [503] * 7
    assert page.join("s10", "203.0.113.8") == 200
    assert [page.join(f"t{n}", f"2001:db8::{n}") for n in range(9)] == [200] * 2 + [503] * 7
    assert page.join("t10", "2001:db8:0:1::1") == 200
    assert [page.join(f"u{n}") for n in range(9)] == [200] * 9


def test_a_place_is_released_once_and_by_its_visitor_alone() -> None:
    page = Page(queue_size=8)
    assert [page.join(), page.join(), page.join()] == [200, 200, 503]
    assert page.request(CANCEL, {"session_hash": "abc", "fn_index": 0, "event_id": "unknown"}) == 200
    assert page.request(CANCEL, {"session_hash": "other", "fn_index": 0, "event_id": "e1"}) == 200
    page.status = 401  # without the password
    assert page.request(f"{DATA}?session_hash=abc", method="GET") == 401
    page.status = 200
    assert page.join() == 503
    assert page.request(CANCEL, {"session_hash": "abc", "fn_index": 0, "event_id": "e1"}) == 200
    assert [page.join(), page.join()] == [200, 503]
    page.scopes[1]["state"][PLACE].leave()  # as the handler does when it starts
    page.scopes[1]["state"][PLACE].leave()
    assert [page.join(), page.join()] == [200, 503]
    assert page.request(f"{DATA}?session_hash=abc", method="GET") == 200  # the stream has ended
    page.status = 500
    assert [page.join() for _ in range(5)] == [500] * 5  # Gradio did not take them
    page.status = 200
    assert [page.join(), page.join(), page.join()] == [200, 200, 503]


def test_wrong_passwords_have_to_wait_longer_each_time() -> None:
    page = Page("0.0.0.0", status=400)
    tries = waited = 0
    for _ in range(200):  # one in a second
        page.seconds += 1
        if page.request(LOGIN, b"password=x", client=OUTSIDE) == 400:
            tries += 1
        else:
            waited += 1
    assert tries < FREE_GUESSES + 10
    assert waited == 200 - tries
    page.status = 200
    assert page.request(LOGIN, b"password=right", client="203.0.113.8") == 200  # another visitor
    page.seconds += MAX_WAIT_SECONDS
    assert page.request(LOGIN, b"password=right", client=OUTSIDE) == 200
    page.status = 400
    assert [page.request(LOGIN, b"password=x", client=OUTSIDE) for _ in range(FREE_GUESSES + 1)] == [
        *[400] * FREE_GUESSES,
        429,
    ]


def test_guesses_of_many_addresses_are_forgotten() -> None:
    guesses = PasswordGuesses(lambda: 0.0)
    for number in range(2 * MAX_ADDRESSES):
        assert guesses.begin(f"address {number}") == 0
    assert len(guesses._guesses) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", ""),
        ("127.3.2.1", ""),
        ("::1", ""),
        ("::ffff:127.0.0.1", ""),
        (None, ""),
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_the_address_of_a_visitor(host: str | None, address: str) -> None:
    assert visitor_address(host) == address
    if host:
        assert is_loopback(host) == (not address)


def test_refusals_are_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    page = Page()
    for _ in range(100):
        page.request("/gradio_api/upload")
    page.seconds += LOG_SECONDS
    page.request("/x\x1b[2J" + "y" * 5000, method="GET")
    first, second = [record.getMessage() for record in caplog.records]
    assert first == "web: refused 404 POST /gradio_api/upload: there is no such route"
    assert second.endswith("; 99 others since the last such line")
    assert len(second) < 250


def test_a_failed_request_of_the_server_is_such_a_line(caplog: pytest.LogCaptureFixture) -> None:
    server = logging.getLogger("tests.server")
    server.addFilter(RefusalLog())
    for _ in range(9):
        try:
            json.loads("x")
        except ValueError:
            server.exception("Exception in ASGI application\n")
    (record,) = caplog.records
    assert record.getMessage().startswith("web: refused Exception in ASGI application: JSONDecodeError in /")
    assert record.exc_info is None
