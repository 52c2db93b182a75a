"""The page for a person: what it tells and takes, over HTTP. tests/cli/test_judge_page.py has it in Chromium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kyon_pl.evaluation.judged import Match
from kyon_pl.judge.page import HandJudge, page_app, shown_left
from kyon_pl.judge.questions import Question
from kyon_pl.judge.verdicts import Pair, Verdicts

NAMES = ("base", "tuned")


def make_judge(file: Path, count: int = 6, results: list[Match] | None = None) -> HandJudge:
    """A judge of pairs; the replies of one are equal."""
    pairs = [Pair(n, Question(f"SYSTEM###MEMORY###Q{n}?", "R"), f"plain {n}", f"tuned {n}") for n in range(count)]
    pairs.append(Pair(count, Question("Q?", ""), "same", "same "))
    return HandJudge(pairs, Verdicts(file, "person", NAMES, pairs), (results if results is not None else []).append)


def client_of(judge: HandJudge) -> TestClient:
    return TestClient(page_app(judge), base_url="http://127.0.0.1:7861")


def post(client: TestClient, path: str, content: Any, **headers: str) -> Any:
    return client.post(path, json=content, headers=headers)


def choose_tuned(client: TestClient) -> dict[str, Any]:
    shown = client.get("/state").json()["pair"]
    choice = "left" if shown["left"].startswith("tuned") else "right"
    state: dict[str, Any] = post(client, "/verdict", {"number": shown["number"], "choice": choice}).json()
    return state


def test_verdicts_are_those_of_the_side_that_was_chosen(tmp_path: Path) -> None:
    results: list[Match] = []
    client = client_of(make_judge(tmp_path / "v.jsonl", results=results))
    for _ in range(5):
        state = choose_tuned(client)
    assert state["counts"] == [5, 1, 0]  # the equal pair is a tie
    post(client, "/verdict", {"number": state["pair"]["number"], "choice": "tie"})
    state = client.get("/state").json()
    assert (state["counts"], state["pair"], state["decided"], state["total"]) == ([5, 2, 0], None, 6, 6)
    assert state["rate"] == pytest.approx(6 / 7)
    assert [match.rate.wins for match in results] == [1, 2, 3, 4, 5, 5]


def test_sides_are_mixed_and_unnamed(tmp_path: Path) -> None:
    judge = make_judge(tmp_path / "v.jsonl", count=40)
    assert 8 < sum(shown_left(pair) == "first" for pair in judge.pairs) < 32
    shown = judge.state()["pair"]
    assert set(shown) == {"number", "question", "system", "memories", "reference", "left", "right"}
    assert not any(name in json.dumps(shown) for name in ("first", "second", "base"))


def test_undo_and_a_restart(tmp_path: Path) -> None:
    client = client_of(make_judge(tmp_path / "v.jsonl"))
    for _ in range(3):
        choose_tuned(client)
    assert post(client, "/undo", {}).json()["pair"]["number"] == 2
    client = client_of(make_judge(tmp_path / "v.jsonl"))
    state = client.get("/state").json()
    assert (state["decided"], state["pair"]["number"]) == (2, 2)
    assert post(client, "/undo", {}).json()["pair"]["number"] == 1
    for _ in range(4):
        state = post(client, "/undo", {}).json()
    assert (state["decided"], state["rate"]) == (0, 0.5)


def test_a_verdict_that_comes_twice_counts_once(tmp_path: Path) -> None:
    client = client_of(make_judge(tmp_path / "v.jsonl"))
    for _ in range(2):
        assert post(client, "/verdict", {"number": 0, "choice": "tie"}).json()["decided"] == 1
    assert len((tmp_path / "v.jsonl").read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status"),
    [
        ("GET", "/", None, {"host": "example.org"}, 421),
        ("GET", "/state", None, {"host": "example.org:7861"}, 421),
        ("POST", "/verdict", {"number": 0, "choice": "left"}, {"host": "example.org"}, 421),
        ("POST", "/verdict", {"number": 0, "choice": "left"}, {"origin": "http://example.org"}, 403),
        ("POST", "/undo", {}, {"origin": "null"}, 403),
        ("POST", "/undo", {}, {"content-type": "text/plain"}, 415),
        ("POST", "/verdict", {"number": 0, "choice": "left", "more": "x" * 2000}, {}, 413),
        ("POST", "/verdict", {"number": 0, "choice": "first"}, {}, 400),
        ("POST", "/verdict", {"number": 99, "choice": "left"}, {}, 400),
        ("POST", "/verdict", {"number": [0], "choice": None}, {}, 400),
        ("POST", "/verdict", {"number": 6, "choice": "left"}, {}, 400),  # the equal pair
        ("POST", "/verdict", [], {}, 400),
        ("GET", "/verdict", None, {}, 405),
        ("GET", "/etc/passwd", None, {}, 404),
    ],
)
def test_what_is_refused(
    method: str, path: str, content: Any, headers: dict[str, str], status: int, tmp_path: Path
) -> None:
    client = client_of(make_judge(tmp_path / "v.jsonl"))
    settings = {} if content is None else {"content": json.dumps(content)}
    answer = client.request(method, path, headers={"content-type": "application/json"} | headers, **settings)
    assert answer.status_code == status, answer.text
    assert (tmp_path / "v.jsonl").read_text(encoding="utf-8") == ""


def test_broken_json_is_refused(tmp_path: Path) -> None:
    client = client_of(make_judge(tmp_path / "v.jsonl"))
    for body in (b"{", b"[" * 900, b"\xff"):
        answer = client.post("/verdict", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    answer = client_of(make_judge(tmp_path / "v.jsonl")).get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert "http" not in answer.text.replace("http://127.0.0.1", "")
