"""A model that judges canned replies over HTTP: what it decides, how it fails, and what is kept."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rule_judge import Fault, by_character, completion, rule_judge

from kyon_pl.errors import CheckpointError, MachineError, SettingError
from kyon_pl.evaluation.judged import Match, WinRate
from kyon_pl.judge.endpoint import KEY, Endpoint
from kyon_pl.judge.judging import ANSWERS, judge_pairs
from kyon_pl.judge.knockout import bracket_lines, knockout
from kyon_pl.judge.questions import Question
from kyon_pl.judge.rubric import messages, read_verdict
from kyon_pl.judge.verdicts import ORDERS, Pair, Verdicts, outcome_of_orders

TUNED, PLAIN = "绵卷:「咩呼～小满小满，钟楼就在北坡，跟我飘过去哒！」", "绵卷:「小满，钟楼在北坡。」"
NAMES = ("base", "tuned")
OK: tuple[Fault, ...] = ()
REFUSAL = (200, {}, completion(None, refusal="I cannot judge this."))
NONSENSE = (200, {}, completion("Both have their charm."))
BUSY = (429, {"retry-after": "0"}, b'{"error": {"message": "slow down"}}')
BROKEN = (503, {}, b"<html>overloaded</html>")
NO_JSON = (200, {}, b"<html>a login page</html>")
NO_CHOICE = (200, {}, b'{"choices": []}')


def pair(number: int, first: str, second: str) -> Pair:
    question = Question(f"你在扮演绵卷。###钟楼在北坡。###小满:「第{number}次，钟楼在哪里？」", TUNED)
    return Pair(number, question, first, second)


def mixed(wins: int, ties: int, losses: int) -> list[Pair]:
    """Pairs that the demo's grammar decides so."""
    kinds = [(PLAIN, TUNED)] * wins + [(TUNED, TUNED + " ")] * ties + [(TUNED, PLAIN)] * losses
    return [pair(number, *kind) for number, kind in enumerate(kinds)]


def judged(pairs: list[Pair], url: str, file: Path, timeout_s: float = 5.0) -> Match:
    return judge_pairs(pairs, Verdicts(file, "rule", NAMES, pairs), Endpoint(url, "rule", timeout_s, wait_s=0.001))


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def counts(match: Match) -> tuple[int, int, int, int]:
    return match.rate.wins, match.rate.ties, match.rate.losses, match.rate.unjudged


def test_the_better_side_wins_and_equal_replies_are_not_asked_about(tmp_path: Path) -> None:
    with rule_judge() as (url, judge):
        match = judged(mixed(6, 2, 1), url, tmp_path / "verdicts.jsonl")
    assert counts(match) == (6, 2, 1, 0)
    assert match.rate.rate == pytest.approx(7 / 9)
    assert len(judge.seen) == 2 * 7
    assert {row["answer"] for row in rows(tmp_path / "verdicts.jsonl")} == {
        f"Only one is in character.\nVerdict: {letter}" for letter in "AB"
    }


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_judge_that_follows_the_place_decides_nothing(letter: str, tmp_path: Path) -> None:
    with rule_judge(lambda a, b: f"Verdict: {letter}") as (url, _):
        match = judged(mixed(5, 0, 2), url, tmp_path / "verdicts.jsonl")
    assert counts(match) == (0, 7, 0, 0)
    assert (match.rate.rate, match.rate.interval) == (0.5, (0.5, 0.5))


def test_a_preference_for_a_place_changes_no_question_that_the_judge_can_decide(tmp_path: Path) -> None:
    def biased(a: str, b: str) -> str:
        verdict = by_character(a, b)
        return "Verdict: A" if "tie" in verdict else verdict

    pairs = [*mixed(5, 0, 2), pair(7, TUNED, TUNED.replace("小满", "青柚")), pair(8, PLAIN, PLAIN + "？")]
    with rule_judge(biased) as (url, _):
        assert counts(judged(pairs, url, tmp_path / "verdicts.jsonl")) == (5, 2, 2, 0)


@pytest.mark.parametrize(
    ("faults", "requests", "kept"),
    [
        ([REFUSAL], 3, 3),
        ([NONSENSE, REFUSAL], 4, 4),
        ([NO_JSON], 3, 3),
        ([NO_CHOICE], 3, 3),
        ([BUSY, BUSY, BROKEN], 5, 2),
        ([0.3], 3, 2),  # a timeout
        (["drip"], 3, 2),
        (["flood"], 3, 3),  # what is read of it is no verdict
        ([(400, {}, b'{"error": {"message": "Unsupported parameter: temperature"}}')], 3, 2),
    ],
)
def test_a_fault_is_survived(faults: list[Fault], requests: int, kept: int, tmp_path: Path) -> None:
    with rule_judge(faults=faults) as (url, judge):
        match = judged(mixed(1, 0, 0), url, tmp_path / "verdicts.jsonl", timeout_s=0.15)
    assert counts(match) == (1, 0, 0, 0)
    assert (len(judge.seen), len(rows(tmp_path / "verdicts.jsonl"))) == (requests, kept)


@pytest.mark.parametrize("fault", [REFUSAL, NONSENSE, NO_JSON])
def test_what_gets_no_verdict_is_counted_apart_and_not_asked_again(fault: Fault, tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    with rule_judge(faults=[fault] * ANSWERS) as (url, judge):
        assert counts(judged(mixed(3, 0, 0), url, file)) == (2, 0, 0, 1)
        assert len(judge.seen) == ANSWERS + 5
        assert counts(judged(mixed(3, 0, 0), url, file)) == (2, 0, 0, 1)
        assert len(judge.seen) == ANSWERS + 5


def test_an_endpoint_that_stays_silent_ends_the_command_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "verdicts.jsonl"
    with rule_judge(faults=[None, None, *[BROKEN] * 18]) as (url, judge):
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(MachineError, match=r"answers 503.*what was answered is kept"),
        ):
            judged(mixed(4, 0, 0), url, file)
        assert "asking again in" in caplog.text
        assert len(rows(file)) == 2
        assert counts(judged(mixed(4, 0, 0), url, file)) == (4, 0, 0, 0)
        assert len(judge.seen) == 2 + 18 + 6


def test_a_restart_asks_only_what_is_missing(tmp_path: Path) -> None:
    """Also after a kill in the middle of a row."""
    file, pairs = tmp_path / "verdicts.jsonl", mixed(4, 0, 1)
    with rule_judge() as (url, judge):
        judged(pairs, url, file)
        whole = file.read_bytes()
        lines = whole.splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:3]) + lines[3][:-30])
        assert counts(judged(pairs, url, file)) == (4, 0, 1, 0)
        assert len(judge.seen) == 10 + 7
    assert file.read_bytes() == whole


def test_a_file_of_other_replies_another_judge_or_broken_rows_is_refused(tmp_path: Path) -> None:
    file, pairs = tmp_path / "verdicts.jsonl", mixed(2, 0, 0)
    with rule_judge() as (url, _):
        judged(pairs, url, file)
    Verdicts(file, "rule", NAMES, pairs)
    for judge, others in (("other", pairs), ("rule", mixed(1, 0, 1)), ("rule", pairs[:1])):
        with pytest.raises(SettingError, match="no verdict of this judge on these replies"):
            Verdicts(file, judge, NAMES, others)
    for line in (b"{}\n", b"[]\n", b"\xff\n", b'{"judge": 1}\n'):
        broken = tmp_path / "broken.jsonl"
        broken.write_bytes(file.read_bytes() + line)
        with pytest.raises(CheckpointError, match=r"line 5"):
            Verdicts(broken, "rule", NAMES, pairs)


def test_the_key_is_sent_and_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-very-secret"
    monkeypatch.setenv(KEY, key)
    echo = (200, {}, completion(f"The key was {key}. Verdict: tie"))
    with rule_judge(faults=[echo, (429, {"retry-after": "0"}, json.dumps({"error": key}).encode())]) as (url, judge):
        with caplog.at_level(logging.DEBUG, "kyon_pl"):
            judged(mixed(1, 0, 0), url, tmp_path / "verdicts.jsonl")
        assert set(judge.keys) == {f"Bearer {key}"}
        assert key not in repr(Endpoint(url, "rule"))
        judge.faults.append((401, {}, json.dumps({"error": {"message": f"wrong key {key}"}}).encode()))
        with pytest.raises(SettingError, match=KEY) as refused:
            Endpoint(url, "rule").ask(messages(pair(0, "a", "b"), "first"))
    assert key not in caplog.text + (tmp_path / "verdicts.jsonl").read_text(encoding="utf-8") + str(refused.value)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Verdict: A", "first"),
        ("I prefer B at first.\n**Verdict: B**", "second"),
        ("verdict：tie", "tie"),
        ("Verdict: A更好", "first"),
        ("<think>Verdict: A</think>\nVerdict: B", "second"),
        ("Verdict: A\n\nOn reflection:\nVerdict: B", "second"),
        ("A", "first"),
        (" tie. ", "tie"),
        ("Verdict: Both", "none"),
        ("A is good, B is good", "none"),
        ("", "none"),
    ],
)
def test_what_an_answer_says(answer: str, verdict: str) -> None:
    assert read_verdict(answer, "first") == verdict
    swapped = {"first": "second", "second": "first"}
    assert read_verdict(answer, "second") == swapped.get(verdict, verdict)


def test_the_judge_sees_question_memories_and_reference_but_no_names() -> None:
    for shown in ORDERS:
        text = messages(pair(3, "REPLY-1", "REPLY-2"), shown)[1]["content"]
        for part in ("你在扮演绵卷。", "钟楼在北坡。", "第3次", TUNED):
            assert part in text
        order = re.findall(r"REPLY-\d", text)
        assert order == (["REPLY-1", "REPLY-2"] if shown == "first" else ["REPLY-2", "REPLY-1"])


def test_interval_is_the_bootstrap_over_questions() -> None:
    """Held against resampling the outcomes themselves."""
    rate = WinRate(30, 10, 20, 5)
    outcomes = np.array([1.0] * 30 + [0.5] * 10 + [0.0] * 20)
    drawn = np.random.default_rng(7).choice(outcomes, (20_000, len(outcomes))).mean(1)
    assert rate.interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)
    assert rate.rate == pytest.approx(35 / 60)
    low, high = WinRate(wins=10).interval or (0, 0)
    assert (low**10, high) == (pytest.approx(0.025), 1.0)
    assert WinRate(losses=10).interval == pytest.approx((0.0, 1 - low))
    assert (WinRate(unjudged=3).rate, WinRate(unjudged=3).interval) == (None, None)


def play_by(strength: dict[str, int]) -> Any:
    def play(first: str, second: str) -> Match:
        ahead = strength[second] - strength[first]
        return Match(first, second, "rule", WinRate(max(ahead, 0), 1, max(-ahead, 0)))

    return play


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_a_knockout_finds_the_planted_best(count: int) -> None:
    names = [f"step={step}" for step in range(count)]
    for best in names:
        matches, winner = knockout(names, play_by({name: 5 if name == best else 1 for name in names}))
        assert winner == best
        assert len(matches) == count - 1
        lines = bracket_lines(names, matches)
        assert lines[-1].endswith(f"→ {best}")
        assert sum(line.count("without a match") for line in lines) == {2: 0, 3: 1, 5: 2, 8: 0}[count]


def test_a_draw_keeps_the_earlier_and_an_undecided_match_ends_the_knockout() -> None:
    assert knockout(["one", "two"], play_by({"one": 1, "two": 1}))[1] == "one"
    with pytest.raises(MachineError, match="decided no question of one against two"):
        knockout(["one", "two"], lambda one, two: Match(one, two, "rule", WinRate(unjudged=4)))


def test_a_disagreement_of_the_orders_is_a_tie(tmp_path: Path) -> None:
    (one,) = mixed(1, 0, 0)
    for number, (a, b, outcome) in enumerate(
        [("first", "first", "first"), ("first", "second", "tie"), ("tie", "second", "tie"), ("none", "second", "none")]
    ):
        verdicts = Verdicts(tmp_path / f"{number}.jsonl", "rule", NAMES, [one])
        for shown, verdict in zip(ORDERS, (a, b), strict=True):
            verdicts.add(one, shown, verdict)
        assert outcome_of_orders(one, verdicts) == outcome
