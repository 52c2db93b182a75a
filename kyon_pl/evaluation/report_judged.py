"""The section of a report on replies that were judged (`kyon-pl judge`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kyon_pl.evaluation.judged import Match, read_judgements
from kyon_pl.evaluation.parts import Bullets, Heading, Paragraph, Part, Table
from kyon_pl.evaluation.report_messages import Words
from kyon_pl.evaluation.run_folder import RunFolder

_COLUMNS = ("first", "second", "judge", "wins", "ties", "losses", "unjudged", "rate", "interval")


def judged(run: RunFolder, words: Words, of_run: str) -> Iterator[Part]:
    """The win rates in a run folder, each knockout with its winner, and results that cannot be read.

    Args:
        run: the run.
        words: of the report.
        of_run: the end of the heading.
    """
    found, faults = read_judgements(run.folder)
    if not found and not faults:
        return
    yield Heading(words["judged"] + of_run)
    if pairs := [match for one in found if not one.winner for match in one.matches]:
        yield _table(pairs, words)
        yield Paragraph(words["judged_note"])
    for one in found:
        if one.winner:
            yield Paragraph(words["judged_winner"].format(judge=one.matches[0].judge, winner=one.winner))
            yield _table(one.matches, words)
    if faults:
        yield Bullets([words["missing_unreadable"].format(detail=fault) for fault in faults])


def _table(matches: Sequence[Match], words: Words) -> Table:
    rows = [match.cells() for match in matches]
    shown = [[*cells[:-1], cells[-1].replace(" to ", words["judged_to"])] for cells in rows]
    return Table([words[f"judged_{name}"] for name in _COLUMNS], shown)
