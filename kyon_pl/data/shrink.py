"""What becomes of a context that is too long: its oldest text is left out, system prompt and question stay."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from kyon_pl.data.prompt import Context, Message


def shrink_context(context: str, fits: Callable[[str], bool]) -> str | None:
    """A context with as much of its oldest text left out as it takes to fit.

    System prompt (the first `###` segment) and question (the last) always stay whole. Of the segments between, whole
    ones go, from the front: first the memories, then the turns of the dialogue from the oldest on, because the turns
    right before the question are what it answers. Where not even the last fits whole, the end of its text stays.

    Args:
        context: segments joined by `###`.
        fits: whether a context is short enough.

    Returns:
        What stays; None if system prompt and question alone are too long.
    """
    parts = Context.parse(context)
    # a context without `###` is its own system prompt and question, so nothing in it may go
    if not parts.middle or not fits(parts.join(())):
        return None
    dropped = bisect_left(range(len(parts.middle)), True, key=lambda count: fits(parts.join(parts.middle[count:])))
    kept = parts.middle[dropped:]
    if not kept:
        last = parts.middle[-1]
        start = bisect_left(range(len(last)), True, key=lambda place: fits(parts.join((last[place:],))))
        kept = (last[start:],) if start < len(last) else ()
    return parts.join(kept)


def shrink_messages(messages: Sequence[Message], fits: Callable[[list[Message]], bool]) -> list[Message] | None:
    """A conversation with as many of its oldest rounds left out as it takes to fit.

    System prompt and question (the last message) always stay. Rounds go whole, a question with its reply.

    Args:
        messages: up to the question.
        fits: whether a conversation is short enough.

    Returns:
        What stays; None if system prompt and question alone are too long.
    """
    first = int(messages[0]["role"] == "system")
    rounds = (len(messages) - first) // 2

    def without(dropped: int) -> list[Message]:
        return [*messages[:first], *messages[first + 2 * dropped :]]

    fewest = bisect_left(range(rounds + 1), True, key=lambda dropped: fits(without(dropped)))
    return without(fewest) if fewest <= rounds else None
