"""The text of a row, as segments that say what is trained. The only place that knows how a prompt is put together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
