"""Prompts: how a context becomes text segments that are trained or masked, and how a long context is shortened."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Literal, TypedDict

from kyon_pl.errors import no_such_choice

SEPARATOR = "###"
"""Separates the segments of a context: system prompt, memories, earlier turns, question."""

TrainTurns = Literal["last", "all"]
"""Which replies of a conversation are trained."""


class Message(TypedDict):
    """A message of a conversation: an optional `system` prompt, then `user` and `assistant` in turn.

    The assistant can speak first: its greeting is part of the prompt, and never trained.
    """

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Template:
    """The wording of a prompt.

    Attributes:
        question: format of a question, directly followed by its reply; `{round}` counts the questions from 1. A context
            that is one text is the question of the first round.
        reply: format of an earlier reply that is part of the prompt.
        separator: text between the system prompt and the first round, and between rounds.
    """

    question: str
    reply: str
    separator: str

    def format_question(self, round_number: int, question: str) -> str:
        """Word one question."""
        # replace and not format: contexts are full of braces
        return self.question.replace("{round}", str(round_number)).replace("{question}", question)


TEMPLATES = {
    "raw": Template("{question}", SEPARATOR + "{reply}", SEPARATOR),
    "chatglm2": Template("[Round {round}]\n\n问：{question}\n\n答：", "{reply}", "\n\n"),
}
"""`raw`: the context unchanged, as in the original training code; messages are joined in the same format.
`chatglm2`: `build_prompt` of the published model; a system prompt, which it lacks, is put before the first round."""


@dataclass(frozen=True)
class Segment:
    """A piece of a row's text.

    Attributes:
        text: the text, encoded separately: SentencePiece puts its dummy prefix before each segment.
        trained: whether its tokens carry labels.
    """

    text: str
    trained: bool


@dataclass(frozen=True)
class Context:
    """A context, split at its `###`.

    Attributes:
        system: the first segment, the system prompt.
        middle: the segments between, in order: memories, then turns, oldest first. No `###` separates the last memory
            from the first turn, as in the original.
        question: the last segment. A context without `###` is both the system prompt and the question.
    """

    system: str
    middle: tuple[str, ...]
    question: str

    @classmethod
    def parse(cls, context: str) -> Context:
        """Split a context; any text is valid."""
        system, *rest = context.split(SEPARATOR)
        return cls(system, tuple(rest[:-1]), rest[-1] if rest else system)

    def join(self, middle: tuple[str, ...]) -> str:
        """Join system prompt and question with the given segments between them."""
        return SEPARATOR.join((self.system, *middle, self.question))


def render(
    context: str | Sequence[Message], target: str | None = None, template: str = "raw", train_turns: TrainTurns = "last"
) -> list[Segment]:
    """Render a row into segments: the prompt and, if given, the reply.

    Fit, validate, predict and chat all use this function, so prompts are worded the same in training and inference.

    Args:
        context: system prompt, memories, history and question, joined by `###`; or the messages up to the question.
        target: the reply to train; None for a prompt to be answered.
        template: a name in `TEMPLATES`.
        train_turns: `last`: earlier replies are part of the prompt; `all`: they are trained segments.

    Raises:
        SettingError: the template does not exist.
    """
    if template not in TEMPLATES:
        raise no_such_choice("data.template", template, TEMPLATES)
    wording = TEMPLATES[template]
    if isinstance(context, str):
        prompt = [Segment(wording.format_question(1, context), trained=False)]
    else:
        prompt = _render_messages(context, wording, train_turns)
    return prompt if target is None else [*prompt, Segment(target, trained=True)]


def template_hash(template: str) -> str:
    """Return eight hex digits that change with the wording of a template; part of a run's fingerprint."""
    return hashlib.sha256("\0".join(astuple(TEMPLATES[template])).encode()).hexdigest()[:8]


def shrink_context(context: str, fits: Callable[[str], bool]) -> str | None:
    """Remove the oldest text of a context until it fits.

    The system prompt (the first `###` segment) and the question (the last) are kept whole. Segments between them are
    removed from the front: first the memories, then the oldest turns, because the question refers to the latest ones.
    If not even the last of these segments fits, the end of its text is kept.

    Args:
        context: segments joined by `###`.
        fits: whether a context is short enough.

    Returns:
        The shortened context; None if system prompt and question alone are too long.
    """
    parts = Context.parse(context)
    # a context without `###` is both system prompt and question, so nothing can be removed
    if not parts.middle or not fits(parts.join(())):
        return None
    dropped = bisect_left(range(len(parts.middle)), True, key=lambda count: fits(parts.join(parts.middle[count:])))
    kept = parts.middle[dropped:]
    if not kept:
        last = parts.middle[-1]
        start = bisect_left(range(len(last)), True, key=lambda start: fits(parts.join((last[start:],))))
        kept = (last[start:],) if start < len(last) else ()
    return parts.join(kept)


def shrink_messages(messages: Sequence[Message], fits: Callable[[list[Message]], bool]) -> list[Message] | None:
    """Remove the greeting and then the oldest rounds of a conversation, each a question with its reply, until it fits.

    Args:
        messages: the messages up to the question. The system prompt and the question are always kept.
        fits: whether a conversation is short enough.

    Returns:
        The shortened conversation; None if system prompt and question alone are too long.
    """
    first = int(messages[0]["role"] == "system")
    starts = [number for number in range(first, len(messages)) if number == first or messages[number]["role"] == "user"]

    def without(dropped: int) -> list[Message]:
        return [*messages[:first], *messages[starts[dropped] :]]

    fewest = bisect_left(range(len(starts)), True, key=lambda dropped: fits(without(dropped)))
    return without(fewest) if fewest < len(starts) else None


def _render_messages(messages: Sequence[Message], wording: Template, train_turns: TrainTurns) -> list[Segment]:
    segments: list[Segment] = []
    text, rounds = "", 0
    for message in messages:
        content = message["content"]
        if message["role"] == "system":
            text = content
        elif message["role"] == "user":
            rounds += 1
            text += (wording.separator if segments or text else "") + wording.format_question(rounds, content)
        elif not rounds:  # a greeting
            text += (wording.separator if text else "") + content
        elif train_turns == "all":
            segments += [Segment(text, trained=False), Segment(content, trained=True)]
            text = ""
        else:
            text += wording.reply.replace("{reply}", content)
    return [*segments, Segment(text, trained=False)]
