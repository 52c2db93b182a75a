"""`kyon-pl judge`: is the tuned model better than its base, and which checkpoint of a run is the best?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kyon_pl.disk import expand_home
from kyon_pl.errors import SettingError
from kyon_pl.evaluation.judged import JUDGED, Match
from kyon_pl.imports import need_package
from kyon_pl.judge.endpoint import Endpoint
from kyon_pl.judge.judging import judge_pairs
from kyon_pl.judge.knockout import bracket_lines, knockout
from kyon_pl.judge.page import HandJudge, serve_page
from kyon_pl.judge.questions import Question, QuestionRows, data_settings
from kyon_pl.judge.replies import check_folder, collect_replies, file_name, open_folder
from kyon_pl.judge.results import result_lines, write_result
from kyon_pl.judge.sides import BASE, Side, find_checkpoints, find_sides
from kyon_pl.judge.verdicts import Pair, Verdicts
from kyon_pl.logs import from_here
from kyon_pl.outputs import locked, resolve

log = logging.getLogger(__name__)

PERSON = "person"


def judge(
    first: str = BASE,
    second: str | None = None,
    first_server: str | None = None,
    second_server: str | None = None,
    checkpoints_of: str | None = None,
    which: Literal["best", "last"] | None = None,
    base: str | None = None,
    revision: str | None = None,
    questions: str | None = None,
    number: int = 100,
    max_new_tokens: int = 128,
    endpoint: str | None = None,
    endpoint_model: str | None = None,
    endpoint_timeout: float = 120.0,
    output: str | None = None,
    port: int = 7861,
) -> None:
    """Compare the replies of two models to held-out questions, or those of all checkpoints of a run.

    Both sides reply greedily to the same questions, in the form of training. Without an endpoint, you judge on a local
    page, without knowing whose replies they are. The same command resumes: replies and verdicts are kept at once.

    Args:
        first: a side: base for the base of the other side; a PEFT folder, a run folder, a folder of runs, a checkpoint
            or a Hub id; or the folder of a merged model.
        second: the other side, whose win rate is the result. By default, the newest run here.
        first_server: address of a server that computes the replies of the first side, see chat. Name the folder of its
            model with --first.
        second_server: address of a server that computes the replies of the second side. Name the folder of its model
            with --second.
        checkpoints_of: a run folder, of which the best checkpoint is found by a knockout, in place of two sides.
        which: the checkpoint to use of a run, best (by validation loss) or last; by default the best, or the last if
            nothing was validated.
        base: folder or Hub id of the base of adapters; by default, the one that they name.
        revision: branch, tag or commit of the base on the Hub.
        questions: file, folder, glob or Hub id of rows to ask, in any form of data.source; targets may be missing. By
            default, the validation rows of the second side's run, each question once.
        number: maximum number of questions, evenly spread over the rows.
        max_new_tokens: maximum length of a reply, in tokens.
        endpoint: address of OpenAI's chat completions, such as http://127.0.0.1:8000/v1, whose model judges each pair
            in both orders. A key is read from the environment variable KYON_PL_JUDGE_KEY.
        endpoint_model: the name of the model there.
        endpoint_timeout: longest wait for an answer, in seconds.
        output: folder for replies, verdicts and results. By default, a folder below judge in the run of the second
            side.
        port: port of the page.

    Raises:
        SettingError: sides that cannot be compared, a number out of range, a folder of another comparison, or what the
            endpoint refuses.
        MissingFileError: no such adapter, base, run or rows.
        CheckpointError: files that cannot be read, or do not match.
        DataError: rows that cannot be used.
        MachineError: a server or the endpoint does not answer, the port is in use, or a package is missing.
    """
    if output is not None:
        check_folder(resolve("--output", output))
    judged_by = _judge_of(endpoint, endpoint_model, endpoint_timeout, checkpoints_of, port)
    if max_new_tokens < 1:
        raise SettingError("--max_new_tokens", f"{max_new_tokens} is too low", "Set 1 or more")
    if checkpoints_of is not None:
        given = {"first": first != BASE, "second": second, "first_server": first_server, "second_server": second_server}
        if named := next((name for name, value in given.items() if value), None):
            found = "a knockout takes all checkpoints of --checkpoints_of"
            raise SettingError(f"--{named}", found, "Leave one of the two out")
        sides: Sequence[Side] = find_checkpoints(expand_home(checkpoints_of), base, revision)
    else:
        servers = first_server, second_server
        sides = find_sides(first, second, servers=servers, which=which, base=base, revision=revision)
    rows, asked = _questions(sides, questions, number)
    folder = resolve("--output", _default_folder(sides, checkpoints_of is not None) if output is None else output)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder, "--output"):
        open_folder(folder, sides, asked, max_new_tokens)
        replies = collect_replies(folder, sides, rows, asked, max_new_tokens)
        Comparison(folder, asked, replies, judged_by, port).run(
            [side.name for side in sides], checkpoints_of is not None
        )


@dataclass(frozen=True)
class Comparison:
    """The replies of all sides, and who judges them.

    Attributes:
        folder: of the comparison.
        questions: in order.
        replies: of each side, by name.
        endpoint: the judge; None: a person.
        port: of the page.
    """

    folder: Path
    questions: Sequence[Question]
    replies: dict[str, list[str]]
    endpoint: Endpoint | None
    port: int

    @property
    def judge(self) -> str:
        """Name of the judge."""
        return self.endpoint.model if self.endpoint else PERSON

    def run(self, names: Sequence[str], is_knockout: bool) -> None:
        """Judge, write the result and print it.

        Args:
            names: of the sides.
            is_knockout: whether the sides are checkpoints of which the best is wanted.

        Raises:
            KyonError: whatever the judge raises; the verdicts so far are kept.
            OSError: a file cannot be written.
        """
        (self.folder / file_name(self.judge)).mkdir(exist_ok=True)
        if is_knockout:
            matches, winner = knockout(names, self.match)
            for line in bracket_lines(names, matches):
                print(line)
        else:
            matches, winner = [self.match(names[0], names[1])], ""
        self._write(matches, winner)
        for line in result_lines(matches):
            print(line)
        print(_conclusion(matches, winner))
        log.info("judge: replies, verdicts and result are in %s", from_here(self.folder))

    def match(self, first: str, second: str) -> Match:
        """Compare two sides.

        Raises:
            KyonError: whatever the judge raises.
            OSError: a verdict cannot be written.
        """
        texts = zip(self.questions, self.replies[first], self.replies[second], strict=True)
        pairs = [Pair(place, question, one, other) for place, (question, one, other) in enumerate(texts)]
        if same := sum(pair.same for pair in pairs):
            log.info("%d of %d pairs are the same reply twice: ties, which nobody is asked about", same, len(pairs))
        file = self.folder / file_name(self.judge) / f"{file_name(f'{first}_vs_{second}')}.jsonl"
        verdicts = Verdicts(file, self.judge, (first, second), pairs)
        if self.endpoint:
            return judge_pairs(pairs, verdicts, self.endpoint)
        by_hand = HandJudge(pairs, verdicts, on_verdict=lambda match: self._write([match], ""))
        serve_page(by_hand, self.port)
        return by_hand.match()

    def _write(self, matches: Sequence[Match], winner: str) -> None:
        write_result(self.folder / file_name(self.judge), matches, len(self.questions), winner)


def _judge_of(
    url: str | None, model: str | None, timeout_s: float, checkpoints_of: str | None, port: int
) -> Endpoint | None:
    """The endpoint; None if a person judges on the page."""
    if url is None:
        if model is not None:
            raise SettingError("--endpoint_model", "there is no --endpoint", "Name its address, too")
        if checkpoints_of is not None:
            raise SettingError("--checkpoints_of", "a knockout needs a model that judges", "Name it with --endpoint")
        if not 0 < port < 2**16:
            raise SettingError("--port", f"{port} is not a port", "Choose one of 1024 to 65535")
        for package in ("starlette", "uvicorn"):
            need_package(package, "web", where="kyon-pl judge", does="serves the page")
        return None
    if not model:
        raise SettingError("--endpoint_model", "it is missing", "Name the model that judges")
    if model == PERSON:
        raise SettingError("--endpoint_model", f"{PERSON} is the name of who judges on the page", "Use another name")
    if not 0 < timeout_s <= 86_400:
        raise SettingError("--endpoint_timeout", f"{timeout_s} is out of range", "Set a number of seconds, such as 120")
    return Endpoint(url, model, timeout_s)


def _questions(sides: Sequence[Side], source: str | None, most: int) -> tuple[QuestionRows, list[Question]]:
    last = next(side for side in reversed(sides) if not side.is_base)
    rows = QuestionRows(data_settings(last.folder), last.tokenizer, source, most)
    asked = [question for question, _ in rows.read()]
    log.info("judge: %d questions, %s", len(asked), " against ".join(side.name for side in sides))
    return rows, asked


def _default_folder(sides: Sequence[Side], knocked_out: bool) -> Path:
    run = next((side.run for side in reversed(sides) if side.run and not side.is_base), None)
    name = "knockout" if knocked_out else file_name("_vs_".join(side.name for side in sides))
    return (run or Path()) / JUDGED / name


def _conclusion(matches: Sequence[Match], winner: str) -> str:
    if winner:
        return f"best checkpoint: {winner}"
    (match,) = matches
    rate = match.rate
    if rate.rate is None:
        return f"nothing is judged; {rate.unjudged} questions are open"
    told = "no difference can be told" if rate.interval and rate.interval[0] <= 0.5 <= rate.interval[1] else ""
    better = told or f"{match.second if rate.rate > 0.5 else match.first} is better"
    return f"{match.second} wins {rate.rate_text()} against {match.first} (95 %: {rate.interval_text()}): {better}"
