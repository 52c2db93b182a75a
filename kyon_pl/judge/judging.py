"""Lets a model judge pairs of replies, each in both orders."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tqdm import tqdm  # type: ignore[import-untyped]

from kyon_pl.evaluation.judged import Match
from kyon_pl.judge.endpoint import Endpoint, NoAnswer, unreachable
from kyon_pl.judge.rubric import messages, read_verdict
from kyon_pl.judge.verdicts import ORDERS, Pair, Shown, Verdicts, outcome_of_orders

log = logging.getLogger(__name__)

ANSWERS = 3  # asked for a verdict, before a question counts as not judged
_SILENCES = 3  # questions in a row without an answer, before the command ends


def judge_pairs(pairs: Sequence[Pair], verdicts: Verdicts, endpoint: Endpoint) -> Match:
    """Let a model judge all pairs that have no verdict yet.

    An answer without a verdict is asked for again, twice at most, and then counts as not judged. So does a question
    to which the endpoint gives no answer, which the next start asks again.

    Args:
        pairs: in order.
        verdicts: of this judge; each answer is kept there at once.
        endpoint: the judge.

    Raises:
        MachineError: the endpoint gave no answer to several questions in a row.
        SettingError: it refuses the key, the model or the request.
        OSError: the verdicts cannot be written.
    """
    silent = 0
    asked = [(pair, shown) for pair in pairs if not pair.same for shown in ORDERS]
    for pair, shown in tqdm(asked, desc=" against ".join(verdicts.names), leave=False, disable=None):
        try:
            _judge(pair, shown, verdicts, endpoint)
            silent = 0
        except NoAnswer as reason:
            silent += 1
            log.warning("question %d is not judged: the judge %s", pair.number + 1, reason)
            if silent == _SILENCES:
                raise unreachable(endpoint, str(reason)) from None
    return verdicts.match(outcome_of_orders(pair, verdicts) for pair in pairs)


def _judge(pair: Pair, shown: Shown, verdicts: Verdicts, endpoint: Endpoint) -> None:
    answers = verdicts.answers(pair, shown)
    while len(answers) < ANSWERS and (not answers or answers[-1] == "none"):
        answer = endpoint.ask(messages(pair, shown))
        verdicts.add(pair, shown, read_verdict(answer, shown), answer)
        answers = verdicts.answers(pair, shown)
