"""The best of several sides, by matches in rounds of which the winners go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kyon_pl.errors import MachineError
from kyon_pl.evaluation.judged import Match


def knockout(names: Sequence[str], play: Callable[[str, str], Match]) -> tuple[list[Match], str]:
    """Play rounds until one side is left.

    Neighbours play each other; of an odd number, the last goes on without a match. In a draw the first one goes on.

    Args:
        names: the sides, checkpoints by optimizer step.
        play: compares two of them.

    Returns:
        All matches in order, and the winner.

    Raises:
        MachineError: the judge decided no question of a match.
        KyonError: whatever `play` raises.
    """
    left, matches = [*names], list[Match]()
    while len(left) > 1:
        ahead = []
        for first, second in zip(left[::2], left[1::2], strict=False):
            match = play(first, second)
            matches.append(match)
            ahead.append(winner_of(match))
        left = ahead + left[len(left) - len(left) % 2 :]
    return matches, left[0]


def winner_of(match: Match) -> str:
    """The side that goes on.

    Raises:
        MachineError: no question was judged.
    """
    if match.rate.rate is None:
        found = f"it decided no question of {match.first} against {match.second}"
        raise MachineError(f"judge {match.judge}", found, "Look at its answers in the folder of the comparison")
    return match.second if match.rate.rate > 0.5 else match.first


def bracket_lines(names: Sequence[str], matches: Sequence[Match]) -> list[str]:
    """The rounds as lines: `round 1: a – b 61.5 %, c without a match`.

    Args:
        names: all sides, in the order of the first round.
        matches: from `knockout`.
    """
    left, rest, lines = [*names], [*matches], list[str]()
    while len(left) > 1:
        played, rest = rest[: len(left) // 2], rest[len(left) // 2 :]
        without = left[len(left) - len(left) % 2 :]
        parts = [f"{one.first} – {one.second} {one.rate.rate_text()} → {winner_of(one)}" for one in played]
        parts += [f"{name} without a match" for name in without]
        lines.append(f"round {len(lines) + 1}: {'; '.join(parts)}")
        left = [*map(winner_of, played), *without]
    return lines
