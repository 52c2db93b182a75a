"""The answer of a server, read with a limit. httpx counts its timeouts from byte to byte, and limits no length."""

from __future__ import annotations

import time

import httpx

MAX_BYTES = 16 * 2**20
_KEPT_HEADERS = ("content-type", "retry-after")


def read_answer(response: httpx.Response, until_s: float) -> httpx.Response:
    """The answer that a streamed response holds, or its first 16 MiB.

    Args:
        response: opened by `httpx.Client.stream`.
        until_s: when it has to be complete, on the clock of `time.monotonic`.

    Raises:
        httpx.ReadTimeout: it is not complete then.
        httpx.HTTPError: the connection broke.
    """
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > MAX_BYTES:
            break
        if time.monotonic() > until_s:
            raise httpx.ReadTimeout("the answer did not end in time")
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    return httpx.Response(response.status_code, headers=headers, content=bytes(body[:MAX_BYTES]))
