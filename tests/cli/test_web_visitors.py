"""What one visitor can take from the machine that serves the page, over HTTP."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from forged_requests import forged_requests
from gradio_client import Client
from limits import HANG_S
from web_host import free_port, make_sessions, with_counting_model, with_hostile_model, write_role, write_small_adapter

from kyon_pl.chat.web.app import open_page
from kyon_pl.chat.web.sessions import SessionLimits, Sessions, SessionSettings

MIB = 2**20
VALUES: list[Any] = ["Will you cross?", None, None, "", "", "one", False, 16, 0.0, 1.0, 1.0, 0]
JOIN = "gradio_api/queue/join"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_adapter(tmp_path_factory.mktemp("adapters") / "one", 2)


@pytest.fixture(scope="module")
def sessions(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    role = write_role(tmp_path_factory.mktemp("roles"), "Bo")
    return make_sessions([adapter], [role], SessionLimits(message_characters=500, max_new_tokens=700))


@contextmanager
def opened(sessions: Sessions, password: str | None = None) -> Iterator[str]:
    page = open_page(sessions, SessionSettings(), "127.0.0.1", free_port(), password)
    try:
        yield page.local_url
    finally:
        page.close()


def ask(visitor: httpx.Client, session: str) -> int:
    return visitor.post(JOIN, json={"data": VALUES, "fn_index": 0, "session_hash": session}).status_code


def pieces(mib: int) -> Iterator[bytes]:
    yield b'{"data": ["'
    for _ in range(16 * mib):
        yield b"x" * (MIB // 16)


def test_one_visitor_has_a_quarter_of_the_queue_and_the_next_is_answered(sessions: Sessions) -> None:
    counting, model = with_counting_model(sessions)
    with opened(counting) as address, httpx.Client(base_url=address, timeout=HANG_S) as visitor:
        statuses = Counter(ask(visitor, "greedy") for _ in range(60))
        quarter = sessions.limits.queue_size // 4
        assert statuses[200] in (quarter, quarter + 1)  # and the one that is being answered
        assert statuses[503] == 60 - statuses[200]
        assert ask(visitor, "modest") == 200
        with visitor.stream("GET", "gradio_api/queue/data?session_hash=greedy") as stream:
            next(stream.iter_lines())
        assert model.was_stopped.wait(HANG_S), "the greedy visitor has gone"
        until_s = time.monotonic() + HANG_S
        while (status := ask(visitor, "greedy")) != 200 and time.monotonic() < until_s:
            time.sleep(0.1)
        assert status == 200, "the places of a visitor that has gone are free"


@pytest.mark.parametrize("number", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_forged_requests_leave_no_traceback_on_the_host(
    number: int, sessions: Sessions, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of each visitor; the next one is answered."""
    seed = random.randrange(2**32)
    rng, statuses = random.Random(seed), Counter[int]()
    with opened(with_hostile_model(sessions)) as address, httpx.Client(base_url=address, timeout=HANG_S) as visitor:
        with suppress(httpx.RemoteProtocolError):  # Gradio raises after it has begun to answer
            visitor.get("gradio_api/queue/data?session_hash=nobody")
        for method, path, headers, body in islice(forged_requests(rng, VALUES), number):
            with visitor.stream(method, f"gradio_api/{path}", headers=headers, content=body) as answer:
                statuses[answer.status_code] += 1
        chat = Client(address, verbose=False, analytics_enabled=False)
        _, messages, *_ = chat.predict(*[VALUES[0], *VALUES[3:]], api_name="/ask")
    said = "".join(capfd.readouterr())
    print(f"seed {seed}: {dict(statuses)}")
    assert len(messages) == 2
    assert statuses[400] > 0.4 * number, "the draws are not what they were"
    assert {*statuses} <= {200, 400, 404, 413, 415, 422, 503}, seed
    assert "Traceback" not in said, (seed, said[-3000:])
    assert len(said.splitlines()) < 40, said


def test_what_needs_the_password_and_how_often_it_is_guessed(sessions: Sessions) -> None:
    with opened(sessions, "tiger") as address:
        for path in ("config", "gradio_api/info", "gradio_api/queue/data?session_hash=x"):
            assert httpx.get(address + path).status_code == 401
        for path in ("openapi.json", "gradio_api/openapi.json", "docs"):
            assert httpx.get(address + path).status_code == 404
        assert httpx.get(address + "config", headers={"host": "evil.example"}).status_code == 421
        guesses: list[httpx.Response] = []
        while len(guesses) < 50 and not (guesses and guesses[-1].status_code == 429):
            guesses.append(httpx.post(f"{address}login", data={"username": "x", "password": f"{len(guesses)}"}))
        assert [guess.status_code for guess in guesses[:-1]] == [400] * (len(guesses) - 1)
        assert int(guesses[-1].headers["retry-after"]) >= 1


def resident_mib(pid: int) -> float:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    assert match
    return int(match[1]) / 1024


@pytest.mark.slow
def test_six_visitors_that_send_150_mb_each(adapter: Path, tmp_path: Path) -> None:
    """At once, with and without a length; the server is a process of its own, and its highest memory counts."""
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        words = ["web", "--adapter", str(adapter), "--port", str(port)]
        server = subprocess.Popen([sys.executable, "-m", "kyon_pl", *words], stderr=log, stdout=log, cwd=tmp_path)
    address = f"http://127.0.0.1:{port}/"

    def send(number: int) -> int:
        if number % 2:
            return httpx.post(address + JOIN, content=pieces(150), timeout=HANG_S).status_code
        return httpx.post(address + JOIN, json={"data": ["x" * 150 * MIB]}, timeout=HANG_S).status_code

    try:
        until_s = time.monotonic() + HANG_S
        while "Ctrl-C ends it" not in (tmp_path / "log").read_text(encoding="utf-8"):
            assert time.monotonic() < until_s
            time.sleep(0.5)
        Client(address, verbose=False).predict(*[VALUES[0], *VALUES[3:]], api_name="/ask")
        before = resident_mib(server.pid)
        with ThreadPoolExecutor(3) as visitors:
            assert {*visitors.map(send, range(6))} == {413}
        after = resident_mib(server.pid)
    finally:
        server.terminate()
        server.wait(timeout=HANG_S)
    print(f"highest resident MiB before {before:.0f}, after {after:.0f}")
    assert after - before < 50
