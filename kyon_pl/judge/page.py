"""A local page on which a person judges pairs of replies, one at a time, without knowing whose they are."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kyon_pl.errors import MachineError, SettingError
from kyon_pl.evaluation.judged import Match
from kyon_pl.judge.verdicts import UNDONE, Pair, Shown, Verdicts, other_side, outcome_by_hand

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
FILE = Path(__file__).with_name("page.html")
_LONGEST_BODY = 1000  # bytes
_CHOICES = ("left", "right", "tie")


@dataclass
class HandJudge:
    """The pairs, and what a person has decided about them.

    Attributes:
        pairs: in order.
        verdicts: of the person.
        on_verdict: called with the result so far after each verdict.
    """

    pairs: Sequence[Pair]
    verdicts: Verdicts
    on_verdict: Callable[[Match], object] = lambda match: None
    _decided: list[int] = field(default_factory=list)  # in the order of the verdicts

    def __post_init__(self) -> None:
        for row in self.verdicts.journal.rows:
            self._note(row["question"], row["verdict"])

    def state(self) -> dict[str, Any]:
        """What the page shows: the next pair without its sides' names, and the result so far."""
        match = self.match()
        rate = match.rate
        asked = [pair for pair in self.pairs if not pair.same]
        left = next((pair for pair in asked if pair.number not in self._decided), None)
        return {
            "sides": list(self.verdicts.names),
            "decided": len(self._decided),
            "total": len(asked),
            "same": len(self.pairs) - len(asked),
            "counts": [rate.wins, rate.ties, rate.losses],
            "rate": rate.rate,
            "interval": rate.interval,
            "pair": left and self._shown(left),
        }

    def match(self) -> Match:
        """The result so far."""
        return self.verdicts.match(outcome_by_hand(pair, self.verdicts) for pair in self.pairs)

    def decide(self, number: int, choice: str) -> None:
        """Keep a verdict; one on a pair that is decided already changes nothing.

        Args:
            number: of the question.
            choice: `left`, `right` or `tie`.

        Raises:
            SettingError: there is no such pair or choice.
            OSError: the file cannot be written.
        """
        pair = next((pair for pair in self.pairs if pair.number == number and not pair.same), None)
        if pair is None or choice not in _CHOICES:
            raise SettingError("verdict", f"no pair {number!r}, or no choice {choice!r}", "Load the page again")
        if number in self._decided:
            return
        shown = shown_left(pair)
        self._keep(pair, {"left": shown, "right": other_side(shown), "tie": "tie"}[choice])

    def undo(self) -> None:
        """Take back the last verdict, if there is one.

        Raises:
            OSError: the file cannot be written.
        """
        if self._decided:
            self._keep(next(pair for pair in self.pairs if pair.number == self._decided[-1]), UNDONE)

    def _keep(self, pair: Pair, verdict: str) -> None:
        self.verdicts.add(pair, shown_left(pair), verdict)
        self._note(pair.number, verdict)
        self.on_verdict(self.match())

    def _note(self, number: int, verdict: str) -> None:
        self._decided = [other for other in self._decided if other != number]
        if verdict != UNDONE:
            self._decided.append(number)

    def _shown(self, pair: Pair) -> dict[str, Any]:
        parts = pair.question.parts
        left, right = pair.replies(shown_left(pair))
        return {
            "number": pair.number,
            "question": parts.question,
            "system": pair.question.system,
            "memories": list(parts.middle),
            "reference": pair.question.reference,
            "left": left,
            "right": right,
        }


def shown_left(pair: Pair) -> Shown:
    """The side whose reply is on the left: as good as random, and the same whenever the page is loaded."""
    return "first" if int(pair.hash, 16) % 2 else "second"


def serve_page(judge: HandJudge, port: int) -> None:
    """Serve the page on this machine only, until Ctrl-C.

    Args:
        judge: what is shown and decided.
        port: to listen on.

    Raises:
        MachineError: the port is in use.
    """
    import uvicorn

    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise MachineError(f"port {port}", str(error), "Choose another --port, or stop what uses this one") from error
    log.info("judge: open http://%s:%d in a browser; Ctrl-C ends it", HOST, port)
    try:
        uvicorn.Server(uvicorn.Config(page_app(judge), log_level="warning")).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()


def page_app(judge: HandJudge) -> Any:
    """The page as an application of Starlette.

    Args:
        judge: what is shown and decided.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    from kyon_pl.chat.web.middleware import Refused, SecurityHeaders, check_site

    page = FILE.read_text(encoding="utf-8")

    async def body(request: Request) -> dict[str, Any]:
        check_site(HOST, request.headers)
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise Refused(415, "the request is no JSON")  # a page of another site can send other types unasked
        read = b""
        async for piece in request.stream():
            read += piece
            if len(read) > _LONGEST_BODY:
                raise Refused(413, f"the request is longer than {_LONGEST_BODY} bytes")
        try:
            content = json.loads(read)
        except (ValueError, RecursionError):
            raise Refused(400, "the request is no JSON") from None
        return content if isinstance(content, dict) else {}

    async def show(request: Request) -> Response:
        check_site(HOST, request.headers)
        return HTMLResponse(page)

    async def state(request: Request) -> Response:
        check_site(HOST, request.headers)
        return JSONResponse(judge.state())

    async def decide(request: Request) -> Response:
        content = await body(request)
        judge.decide(content.get("number", -1), str(content.get("choice")))
        return JSONResponse(judge.state())

    async def undo(request: Request) -> Response:
        await body(request)
        judge.undo()
        return JSONResponse(judge.state())

    async def refuse(request: Request, refused: Exception) -> Response:
        status, headers = (refused.status, refused.headers) if isinstance(refused, Refused) else (400, None)
        return JSONResponse({"detail": str(refused)}, status, headers)

    return Starlette(
        routes=[
            Route("/", show),
            Route("/state", state),
            Route("/verdict", decide, methods=["POST"]),
            Route("/undo", undo, methods=["POST"]),
        ],
        middleware=[Middleware(SecurityHeaders, headers=page_headers(page))],
        exception_handlers={Refused: refuse, SettingError: refuse},
    )


def page_headers(page: str) -> dict[bytes, bytes]:
    """The headers of every response: only the page's own script and style run, and nothing is loaded from elsewhere.

    Args:
        page: the HTML.
    """
    allowed = {}
    for tag in ("script", "style"):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found)
        allowed[tag] = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {allowed['script']}; "
        f"style-src {allowed['style']}; frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
    )
    return {
        b"content-security-policy": policy.encode(),
        b"referrer-policy": b"no-referrer",
        b"x-content-type-options": b"nosniff",
        b"cache-control": b"no-store",
    }
