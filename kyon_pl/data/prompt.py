"""How a context becomes a prompt: segments that are trained or not, and how a long context is shortened."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Literal, TypedDict

from kyon_pl.errors import SettingError

SEPARATOR = "###"
"""Stands between the segments of a context: system prompt, memories, turns of the dialogue so far, question."""

TrainTurns = Literal["last", "all"]
"""Which replies of a conversation are trained."""


class Message(TypedDict):
    """A turn of a conversation: `user` and `assistant` in turn, the user first; a `system` prompt may stand before."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Template:
    """How a prompt is worded.

    Attributes:
        question: what a question becomes, its reply comes right behind it; `{round}` counts the questions from 1. A
            context that comes as one text is the question of a first round.
        reply: what an earlier reply becomes that is part of the prompt.
        joint: stands between system prompt and first round, and between rounds.
    """

    question: str
    reply: str
    joint: str

    def ask(self, round_number: int, question: str) -> str:
        """A question as it stands in the prompt."""
        # replace and not format: contexts are full of braces
        return self.question.replace("{round}", str(round_number)).replace("{question}", question)


TEMPLATES = {
    "raw": Template("{question}", SEPARATOR + "{reply}", SEPARATOR),
    "chatglm2": Template("[Round {round}]\n\n问：{question}\n\n答：", "{reply}", "\n\n"),
}
"""`raw`: a context as it stands, which is how the original trained; the turns of a conversation joined as in a context.
`chatglm2`: the published `build_prompt`, which knows no system prompt; one stands before the first round."""


@dataclass(frozen=True)
class Segment:
    """A piece of a row's text.

    Attributes:
        text: the text, encoded on its own: SentencePiece puts its dummy prefix in front of each segment.
        trained: whether its tokens carry labels.
    """

    text: str
    trained: bool


def render(
    context: str | Sequence[Message], target: str | None = None, template: str = "raw", train_turns: TrainTurns = "last"
) -> list[Segment]:
    """The segments of a row: the prompt, and the reply where there is one.

    Fit, validate, predict and chat all come through here, so what is asked of the model is what it was trained on.

    Args:
        context: system prompt, memories, history and question, joined by `###`; or the messages up to the question.
        target: the reply to learn; None where one is to be generated.
        template: a name in `TEMPLATES`.
        train_turns: `last`: earlier replies are part of the prompt; `all`: they are trained segments of their own.

    Raises:
        SettingError: there is no such template.
    """
    if template not in TEMPLATES:
        raise SettingError("data.template", f"there is no {template!r}", f"Choose one of: {', '.join(TEMPLATES)}.")
    wording = TEMPLATES[template]
    if isinstance(context, str):
        prompt = [Segment(wording.ask(1, context), trained=False)]
    else:
        prompt = _conversation(context, wording, train_turns)
    return prompt if target is None else [*prompt, Segment(target, trained=True)]


def _conversation(messages: Sequence[Message], wording: Template, train_turns: TrainTurns) -> list[Segment]:
    segments: list[Segment] = []
    text, rounds = "", 0
    for message in messages:
        content = message["content"]
        if message["role"] == "system":
            text = content
        elif message["role"] == "user":
            rounds += 1
            text += (wording.joint if segments or text else "") + wording.ask(rounds, content)
        elif train_turns == "all":
            segments += [Segment(text, trained=False), Segment(content, trained=True)]
            text = ""
        else:
            text += wording.reply.replace("{reply}", content)
    return [*segments, Segment(text, trained=False)]


def template_hash(template: str) -> str:
    """Eight hex digits that change with the wording of a template; they are part of a run's fingerprint."""
    return hashlib.sha256("\0".join(astuple(TEMPLATES[template])).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Context:
    """A context taken apart at its `###`.

    Attributes:
        system: the first segment, the system prompt.
        middle: the segments between, in their order: memories, then turns, oldest first. No `###` parts the last memory
            from the first turn; the original joins them so.
        question: the last segment. A context without any `###` is all system prompt and all question.
    """

    system: str
    middle: tuple[str, ...]
    question: str

    @classmethod
    def parse(cls, context: str) -> Context:
        """Take a context apart; never fails."""
        system, *rest = context.split(SEPARATOR)
        return cls(system, tuple(rest[:-1]), rest[-1] if rest else system)

    def join(self, middle: tuple[str, ...]) -> str:
        """The context with other segments between system prompt and question."""
        return SEPARATOR.join((self.system, *middle, self.question))


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
