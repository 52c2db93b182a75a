"""The text of a row, as segments that say what is trained. The only place that knows how a prompt is put together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from kyon_pl.errors import SettingError

SEPARATOR = "###"
"""Stands between the segments of a context: system prompt, memories, turns of the dialogue so far, question."""

TEMPLATES = {"raw": "{context}"}
"""How a context becomes a prompt. `raw`: as it stands, which is how the original trained."""


@dataclass(frozen=True)
class Segment:
    """A piece of a row's text.

    Attributes:
        text: the text, encoded on its own: SentencePiece puts its dummy prefix in front of each segment.
        trained: whether its tokens carry labels.
    """

    text: str
    trained: bool


def render(context: str, target: str | None = None, template: str = "raw") -> list[Segment]:
    """The segments of a row: the prompt, and the reply where there is one.

    Fit, validate, predict and chat all come through here, so what is asked of the model is what it was trained on.

    Args:
        context: system prompt, memories, history and question, joined by `###`.
        target: the reply to learn; None where one is to be generated.
        template: a name in `TEMPLATES`.

    Raises:
        SettingError: there is no such template.
    """
    if template not in TEMPLATES:
        raise SettingError("data.template", f"there is no {template!r}", f"Choose one of: {', '.join(TEMPLATES)}.")
    # replace and not format: contexts are full of braces
    prompt = Segment(TEMPLATES[template].replace("{context}", context), trained=False)
    return [prompt] if target is None else [prompt, Segment(target, trained=True)]


def template_hash(template: str) -> str:
    """Eight hex digits that change with the wording of a template; they travel with an adapter."""
    return hashlib.sha256(TEMPLATES[template].encode()).hexdigest()[:8]


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
