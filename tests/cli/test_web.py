"""`kyon-pl web` over HTTP: the page's buttons, refused input, and many visitors at once."""

from __future__ import annotations

import html
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from gradio_client.utils import Status
from limits import HANG_S
from web_host import HOSTILE, free_port, make_sessions, with_hostile_model, write_role, write_small_adapter

from kyon_pl.chat.model import Sampling
from kyon_pl.chat.web.app import open_page
from kyon_pl.chat.web.passwords import PASSWORD
from kyon_pl.chat.web.sessions import SessionLimits, Sessions, SessionSettings
from kyon_pl.cli import main

QUESTION = "南枝:「钟楼在哪里？」"
SAMPLING = [16, 0.0, 1.0, 1.0, 0]
VISITORS = 20


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_small_adapter(folder / name, seed) for seed, name in ((2, "one"), (3, "two"))]


@pytest.fixture(scope="module")
def sessions(adapters: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    role = write_role(tmp_path_factory.mktemp("roles"), "Bo")
    return make_sessions(
        adapters, [role], SessionLimits(message_characters=500, turns=3, max_new_tokens=700, queue_size=VISITORS)
    )


@pytest.fixture(scope="module")
def address(sessions: Sessions) -> Iterator[str]:
    page = open_page(sessions, SessionSettings(), "127.0.0.1", free_port(), None)
    yield page.local_url
    page.close()


def settings(role: str = "", adapter: str = "one", compares: bool = False, sampling: list[Any] = SAMPLING) -> list[Any]:
    return [role, "Ada" if role else "", adapter, compares, *sampling]


def client(address: str, **options: Any) -> Client:
    return Client(address, verbose=False, analytics_enabled=False, **options)


def texts(chat: list[dict[str, Any]]) -> list[str]:
    return [html.unescape(part["text"]) for message in chat for part in message["content"]]


def test_a_conversation(address: str) -> None:
    visitor = client(address)
    job = visitor.submit(QUESTION, *settings(), api_name="/ask")
    _, chat, base, _ = job.result(timeout=HANG_S)
    boxes = [update[0] for update in job.outputs()]
    assert boxes[0] == ""
    assert {*map(str, boxes[1:])} == {str(gr.skip())}, "what is typed meanwhile is lost"
    growing = [texts(update[1])[-1].removesuffix(" […]") for update in job.outputs()]
    assert len({*growing}) > 3, "it comes piece by piece"
    assert all(later.startswith(earlier) for earlier, later in pairwise(growing))
    assert texts(base) == [QUESTION]
    again, *_ = visitor.predict(*settings(), api_name="/retry")
    assert texts(again) == texts(chat)  # greedy
    other, beside, _ = visitor.predict(*settings(adapter="two", compares=True), api_name="/retry")
    assert len({texts(chat)[1], texts(other)[1], texts(beside)[1]}) == 3  # two adapters and the base
    row = json.loads(visitor.predict(*settings(), api_name="/export"))
    assert [message["content"] for message in row["messages"]] == [QUESTION, texts(other)[1].removesuffix(" […]")]
    left, *_ = visitor.predict(*settings(), api_name="/undo")
    assert left == []
    assert client(address).predict(*settings(), api_name="/undo")[0] == []  # another visitor has their own


def test_a_role_and_its_memories(address: str, sessions: Sessions) -> None:
    visitor = client(address)
    _, chat, _, memories = visitor.predict("Is the bell rung in fog?", *settings(role="Bo"), api_name="/ask")
    assert memories.startswith("1. In fog the bell is rung twice.")
    (turn,) = last(sessions.ask((), "Is the bell rung in fog?", SessionSettings("Bo", "Ada", sampling=Sampling(16))))
    assert turn.question == "Ada:Is the bell rung in fog?"
    assert texts(chat) == [turn.typed, turn.reply.text + ("" if turn.reply.stopped else " […]")]


def test_a_drawn_reply_changes_with_each_retry(address: str) -> None:
    visitor, drawn = client(address), settings(sampling=[16, 2.0, 1.0, 1.0, 5])
    said = [texts(visitor.predict(QUESTION, *drawn, api_name="/ask")[1])[1]]
    said += [texts(visitor.predict(*drawn, api_name="/retry")[0])[1] for _ in range(2)]
    assert len({*said}) == 3


def test_text_stays_text(address: str, sessions: Sessions) -> None:
    """From the visitor and from the model; tests/cli/test_web_page.py tests the same in a browser."""
    page = open_page(with_hostile_model(sessions), SessionSettings(), "127.0.0.1", free_port(), None)
    try:
        _, chat, *_ = client(page.local_url).predict(HOSTILE, *settings(), api_name="/ask")
    finally:
        page.close()
    sent = [part["text"] for message in chat for part in message["content"]]
    assert not [text for text in sent if "<" in text]
    assert texts(chat) == [HOSTILE, HOSTILE]


def test_what_is_refused(address: str) -> None:
    visitor = client(address)
    for said, words in (
        ("it is empty", [" ", *settings()]),
        ("501 characters", ["长" * 501, *settings()]),
        ("400 Bad Request", [QUESTION, *settings(role="Eve")]),
        ("400 Bad Request", [QUESTION, *settings(sampling=[999, *SAMPLING[1:]])]),
    ):
        with pytest.raises(Exception, match=said):
            visitor.predict(*words, api_name="/ask")
    for name in ("/retry", "/export"):
        with pytest.raises(Exception, match="nothing has been said"):
            visitor.predict(*settings(), api_name=name)
    assert "script-src 'self'" in httpx.get(address).headers["content-security-policy"]


def last(updates: Iterator[Any]) -> Any:
    *_, update = updates
    return update


def test_older_turns_are_forgotten(sessions: Sessions) -> None:
    turns: Any = ()
    for number in range(5):
        turns = last(sessions.ask(turns, f"{number}", SessionSettings(sampling=Sampling(2))))
    assert [turn.typed for turn in turns] == ["2", "3", "4"]


def test_closing_the_iterator_ends_the_reply(sessions: Sessions) -> None:
    """And the next visitor's begins."""
    wishes = SessionSettings(sampling=Sampling(10**6, temperature=3.0))  # the limits reduce it to 700
    updates = sessions.ask((), QUESTION, wishes)
    first = next(updates)
    assert not first[-1].reply.stopped
    begin = time.process_time()
    updates.close()  # type: ignore[attr-defined]
    (turn,) = last(sessions.ask((), QUESTION, SessionSettings(sampling=Sampling(2))))
    closed = time.process_time()
    (long,) = last(sessions.ask((), QUESTION, wishes))
    assert turn.reply.text
    assert long.reply.text.startswith(first[-1].reply.text)
    assert (closed - begin) * 2 < time.process_time() - closed, "it went on"


def test_a_password(sessions: Sessions, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    page = open_page(sessions, SessionSettings(), "127.0.0.1", free_port(), "虎 tiger")
    try:
        assert httpx.get(f"{page.local_url}config").status_code == 401
        call = {"data": [QUESTION, None, None, *settings()], "fn_index": 0, "session_hash": "x"}
        assert httpx.post(f"{page.local_url}gradio_api/queue/join", json=call).status_code == 401
        for given, status in (("tiger", 400), ("虎 tiger", 200)):
            answer = httpx.post(f"{page.local_url}login", data={"username": "x", "password": given})
            assert answer.status_code == status
        assert client(page.local_url, auth=("x", "虎 tiger")).predict(*settings(), api_name="/undo")[0] == []
    finally:
        page.close()
    assert "tiger" not in "".join(capfd.readouterr()) + caplog.text


def test_what_the_command_refuses(
    adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    port = free_port()
    taken = subprocess.Popen([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], stderr=-3)
    try:
        time.sleep(1)
        for words, said in (
            (["--password_file", str(tmp_path / "none")], "there is no such file"),
            (["--password_file", str(tmp_path / "empty")], "it is empty"),
            (["--queue_size", "0"], "queue_size: 0 is out of range"),
            (["--temperature", "2.5"], "temperature: 2.5 is outside the page's range"),
            (["--most_new_tokens", "3000"], "leaves no room for a prompt"),
            (["--characters", str(tmp_path / "nobody")], "there is no role"),
            (["--port", str(port)], f"port {port}"),
            (["--port", "70000"], "port: 70000 is not a port"),
            (["--adapter", f"[{adapters[0]}, {tmp_path}]"], "not an adapter, a run or a folder of runs"),
        ):
            with pytest.raises(SystemExit) as stopped:
                main(["web", "--adapter", str(adapters[0]), *words])
            assert stopped.value.code == 2
            assert said in capsys.readouterr().err.strip().splitlines()[-1]
        monkeypatch.setenv(PASSWORD, "")
        with pytest.raises(SystemExit):
            main(["web", "--adapter", str(adapters[0])])
    finally:
        taken.kill()
        taken.wait()


def test_the_command_needs_gradio_only_after_its_checks() -> None:
    """Without the extra, the command can be imported and says what to install; starlette comes with Gradio."""
    code = "import sys, kyon_pl.chat.web.app; print(*{'gradio', 'starlette'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == "\n"


def ask_at_once(visitors: list[Client], question: str) -> list[int]:
    """Each asks when the one before is in the queue; the order in which they have their replies."""
    done: list[int] = []
    jobs = []
    for number, visitor in enumerate(visitors):
        job = visitor.submit(question, *settings(), api_name="/ask")
        job.add_done_callback(lambda _, number=number: done.append(number))
        while job.status().code in (Status.STARTING, Status.JOINING_QUEUE):
            time.sleep(0.01)
        jobs.append(job)
    for job in jobs:
        assert len(texts(job.result(timeout=HANG_S)[1])) % 2 == 0
    return done


def connect(address: str) -> list[Client]:
    with ThreadPoolExecutor(4) as pool:
        return [*pool.map(lambda _: client(address), range(VISITORS))]


def test_twenty_at_once_are_answered_in_their_order(address: str) -> None:
    order = ask_at_once(connect(address), QUESTION)
    assert sorted(order) == [*range(VISITORS)]
    displaced = max(abs(place - number) for place, number in enumerate(order))
    assert displaced <= 1, order  # the news of two replies may cross on their way


def test_a_full_queue_says_so(adapters: list[Path], sessions: Sessions) -> None:
    small = Sessions(sessions.model, {}, 1024, SessionLimits(max_new_tokens=700, queue_size=1))
    page = open_page(small, SessionSettings(), "127.0.0.1", free_port(), None)
    long = settings(sampling=[700, 0.0, 1.0, 0.5, 0])
    try:
        visitors = [client(page.local_url) for _ in range(4)]
        jobs = [visitor.submit(QUESTION, *long, api_name="/ask") for visitor in visitors]
        failed = [job.exception(timeout=HANG_S) for job in jobs]
    finally:
        page.close()
    assert 1 <= len([error for error in failed if error and "queue" in str(error).lower()]) < 4


def resident_mib(pid: int) -> float:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    assert match
    return int(match[1]) / 1024


@pytest.mark.slow
def test_memory_stays_flat(adapters: list[Path], tmp_path: Path) -> None:
    """Ten times twenty turns; the server is a process of its own."""
    port = free_port()
    words = ["web", "--adapter", f"[{adapters[0]}, {adapters[1]}]", "--port", str(port), "--turns_kept", "5"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "kyon_pl", *words], stderr=log, stdout=log, cwd=tmp_path)
    try:
        for _ in range(120):
            if "Ctrl-C ends it" in (tmp_path / "log").read_text(encoding="utf-8"):
                break
            time.sleep(0.5)
        visitors = connect(f"http://127.0.0.1:{port}")
        mib = []
        for number in range(10):
            assert sorted(ask_at_once(visitors, f"{number} {QUESTION}")) == [*range(VISITORS)]
            mib.append(resident_mib(server.pid))
    finally:
        server.terminate()
        server.wait(timeout=HANG_S)
    print(f"resident MiB after each 20 turns: {[round(number) for number in mib]}; {os.cpu_count()} cores")
    assert mib[-1] / mib[0] <= 1.05, mib
