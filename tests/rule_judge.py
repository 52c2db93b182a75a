"""A server of OpenAI's chat completions that judges by a rule, and can be made to fail like a real one."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from serving import serve, stop

from kyon_pl.demo.grammar import CHARACTERS

Rule = Callable[[str, str], str]
Fault = tuple[int, dict[str, str], bytes] | float | Literal["drip", "flood"] | None
ENDLESS = {"drip": (b" ", 0.02), "flood": (b" " * 2**20, 0.0)}  # what is sent again and again, and seconds between


def in_character(reply: str) -> bool:
    """Whether a reply is one of a character of the demo."""
    return any(speaker.accepts(reply) for speaker in CHARACTERS)


def by_character(a: str, b: str) -> str:
    """The verdict by the demo's grammar."""
    if in_character(a) == in_character(b):
        return "Both are alike.\nVerdict: tie"
    return f"Only one is in character.\nVerdict: {'A' if in_character(a) else 'B'}"


class RuleJudge(BaseHTTPRequestHandler):
    """Answers with the verdict of a rule; `faults` are answers that come first, one a request.

    A number is a wait, `drip` an answer of a byte every 20 ms, `flood` one without end.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rule: Rule
    faults: list[Fault]
    seen: list[dict[str, Any]]
    keys: list[str | None]

    def log_message(self, *arguments: object) -> None: ...

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.keys.append(self.headers.get("authorization"))
        self.seen.append(request)
        if self.path != "/v1/chat/completions":
            self._send(404, {}, b'{"error": {"message": "no such path"}}')
            return
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, tuple):
            self._send(*fault)
            return
        if isinstance(fault, str):
            self._send(200, {"content-length": str(2**40)}, b"")
            self._go_on(*ENDLESS[fault])
            return
        if fault:
            time.sleep(fault)
        a, b = re.split(r"\[reply [AB]\]\n", request["messages"][1]["content"])[1:]
        self._send(200, {}, completion(type(self).rule(a.strip(), b.strip())))

    def _go_on(self, piece: bytes, wait_s: float) -> None:
        """Send a piece again and again, until the client has had enough."""
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(wait_s)
        self.close_connection = True

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        try:
            self.send_response(status)
            for name, value in (
                {"content-length": str(len(body)), "content-type": "application/json"} | headers
            ).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:  # the client has waited long enough
            self.close_connection = True


def completion(text: str | None, **more: Any) -> bytes:
    """A chat completion with this text."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text, **more}}
    return json.dumps({"id": "1", "object": "chat.completion", "model": "rule", "choices": [choice]}).encode()


@contextmanager
def rule_judge(rule: Rule = by_character, faults: list[Fault] | None = None) -> Iterator[tuple[str, type[RuleJudge]]]:
    """Serve a judge; yields its address and the handler, whose `seen` has all requests."""
    handler = type(
        "Handler", (RuleJudge,), {"rule": staticmethod(rule), "faults": faults or [], "seen": [], "keys": []}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    try:
        yield f"{serve(server)}/v1", handler
    finally:
        stop(server)
