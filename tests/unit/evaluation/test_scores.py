"""Scores with intervals: the metrics themselves, paired resamples, and intervals as statistics has them."""

from __future__ import annotations

import math
from random import Random

import pytest
from test_metrics import cases, values

from kyon_pl.evaluation.metrics import JudgedReply
from kyon_pl.evaluation.scores import ORDER, Score, reply_scores, score_lines, score_table


def by_name(tuned: list[JudgedReply], base: list[JudgedReply]) -> dict[str, Score]:
    return {score.name: score for score in reply_scores(tuned, base)}


def better(reply: JudgedReply, share: float, rng: Random) -> JudgedReply:
    """The reference in place of the reply, in some rows."""
    return JudgedReply(reply.reference, reply.reference, reply.memories, True) if rng.random() < share else reply


def test_values_are_those_of_the_metrics_in_the_order_of_reading() -> None:
    base, rng = cases(), Random(1)
    tuned = [better(reply, 0.5, rng) for reply in base]
    found = by_name(tuned, base)
    assert {name: score.tuned for name, score in found.items()} == pytest.approx(values(tuned))
    assert {name: score.base for name, score in found.items()} == pytest.approx(values(base))
    assert tuple(found) == ORDER
    for name, score in found.items():
        assert (score.interval is None) == name.startswith("distinct")
        if score.interval:
            assert score.base is not None
            assert score.interval[0] <= score.tuned - score.base <= score.interval[1]
    low, high = found["chrf"].interval or (0.0, 0.0)
    assert 0 < low < high


def test_the_same_replies_have_no_change() -> None:
    """Questions are resampled together; apart, the interval would be as wide as that of the metric."""
    replies = cases()
    found, alone = by_name(replies, replies), by_name(replies, [])
    for name, score in found.items():
        if score.interval:
            assert score.interval == (0.0, 0.0)
            assert alone[name].base is None
            low, high = alone[name].interval or (math.nan, math.nan)
            assert low <= alone[name].tuned <= high
    assert alone["chrf"].interval[1] - alone["chrf"].interval[0] > 1  # type: ignore[index]


def test_the_interval_of_a_share_is_that_of_a_binomial() -> None:
    rng = Random(2)
    replies = [JudgedReply("好", "好", (), rng.random() < 0.7) for _ in range(400)]
    score = by_name(replies, [])["stop_rate"]
    half = 1.96 * math.sqrt(score.tuned * (1 - score.tuned) / len(replies))
    assert score.interval == pytest.approx((score.tuned - half, score.tuned + half), abs=0.012)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_questions_have_no_interval(count: int) -> None:
    assert all(score.interval is None for score in reply_scores(cases()[:count], []))


def test_tables() -> None:
    scores = [
        Score("loss", None, 0.5),
        Score("chrf", 20.0, 31.456, (2.0, 20.125)),
        Score("stop_rate", None, 1, (0.9, 1)),
    ]
    assert score_table(scores).splitlines()[2:] == [
        "| loss | – | 0.50 | – | – |",
        "| chrf | 20.00 | 31.46 | +11.46 | +2.00 to +20.12 |",
        "| stop_rate | – | 1.00 | – | 0.90 to 1.00 |",
    ]
    lines = list(score_lines(scores))
    assert lines[2] == "  chrf       20.00  31.46  +11.46     +2.00 to +20.12"
    assert len({len(line) for line in lines}) == 1
