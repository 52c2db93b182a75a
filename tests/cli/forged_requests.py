"""Requests that the page does not send, drawn at random."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 9999, 2**31 + 1, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "Eve", "\x1b[2J", "\x00", "\ud800", "0", "</script>", "[gMASK]sop</s>", "a" * 3000, "🦊\u202e"),
    *([], {}, [[]], {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"__type__": "update"}),
]
NUMBERS: list[Any] = [*range(-2, 17), 9999, 2**70, 0.5, True, "0", None, [0]]
ROUTES = (
    *("queue/join", "run/predict", "run/ask", "run/undo", "run/export", "run/nothing", "cancel", "reset"),
    *("call/ask", "call/v2/ask", "api/ask", "upload", "component_server", "process_recording", "stream/x", "vibe-edit"),
)
QUERIES = (
    *("queue/data", "queue/data?session_hash=nobody", "info?serialize=x", "file=/etc/passwd", "proxy=http://x"),
    *("upload_progress?upload_id=1", "heartbeat/", "dev/reload", "openapi.json", "custom_component/x/y/z"),
)


def odd_text(rng: random.Random) -> str:
    """Any characters that there are, without surrogates."""
    texts = [value for value in VALUES if isinstance(value, str) and value != "\ud800"]
    drawn = "".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(9))
    return rng.choice([*texts, drawn, drawn, "。", " \n", ":：", "Eve:「"])


def forged_requests(rng: random.Random, valid: list[Any]) -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """Draw requests without end.

    Args:
        rng: decides.
        valid: values that the first function of the page takes.

    Yields:
        Method, path below `/gradio_api/`, headers, body.
    """
    while True:
        if rng.random() < 0.1:
            yield "GET", rng.choice(QUERIES), {}, b""
            continue
        data: Any = [rng.choice(VALUES) if rng.random() < 0.3 else value for value in valid]
        data = rng.choice([data, data, data, data[: rng.randrange(len(data))], [*data, 1], rng.choice(VALUES)])
        if rng.random() < 0.2:  # of the right types
            data = [odd_text(rng), None, None, rng.choice(["", "Bo"]), odd_text(rng), *valid[5:]]
        number = 0 if rng.random() < 0.5 else rng.choice(NUMBERS)
        session = f"forged{rng.randrange(40)}" if rng.random() < 0.8 else rng.choice(VALUES)
        request = {"data": data, "fn_index": number, "session_hash": session, "event_id": rng.choice(VALUES)}
        for key in ("trigger_id", "event_data", "batched", "simple_format"):
            if rng.random() < 0.1:
                request[key] = rng.choice(VALUES)
        if rng.random() < 0.1:
            del request[rng.choice([*request])]
        body = json.dumps(request).encode()
        if rng.random() < 0.1:
            body = rng.choice([b"", b"[" * 9000, body[: len(body) // 2], b"\xff" + body, b"a=b"])
        kind = "application/json" if rng.random() < 0.9 else rng.choice(["text/plain", "multipart/form-data", "", "x"])
        route = "queue/join" if rng.random() < 0.5 else rng.choice(ROUTES)
        yield "POST", route, {"content-type": kind}, body
