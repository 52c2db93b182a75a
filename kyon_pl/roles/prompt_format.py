"""The form of a role's prompts, as it is recorded beside rows, and questions in that form."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from zlib import crc32

from kyon_pl.data.prompt import SEPARATOR
from kyon_pl.roles.contexts import ContextSettings
from kyon_pl.roles.role import Role
from kyon_pl.runs.prompt_format import RoleFormat

ASKER, WORDS = "{asker}", "{words}"  # the parts of `RoleFormat.question`
QUOTES = {"「": "」", "『": "』", "“": "”", '"': '"'}
_TYPED = re.compile(r"([^\s:：]{1,20})[:：]\s*(.*)", re.DOTALL)
_OF_ROW = re.compile(r"([^:：\n]{1,40})([:：] ?)(.*)", re.DOTALL)


@dataclass
class QuestionForms:
    """Counts the forms of questions.

    Attributes:
        counts: number of questions by form and asker.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, question: str) -> None:
        """Count a question."""
        turn = _OF_ROW.fullmatch(question)
        name, colon, words = turn.groups() if turn else ("", "", question)
        opening = words[:1] if words[:1] in QUOTES else ""
        form = f"{ASKER}{colon}" if name else ""
        self.counts[f"{form}{opening}{WORDS}{QUOTES.get(opening, '')}", name] += 1

    def most_common(self) -> tuple[str, str]:
        """The most frequent form, and the most frequent asker in it; of equal ones the first."""
        forms: Counter[str] = Counter()
        for (form, _), count in self.counts.items():
            forms[form] += count
        ((chosen, _),) = forms.most_common(1)
        return chosen, next(asker for (form, asker), _ in self.counts.most_common() if form == chosen)


def split_turn(text: str, asker: str = "") -> tuple[str, str] | None:
    """The name and the words of a typed turn, `name:words`; None if there is no name.

    Args:
        text: the turn.
        asker: a name that is known, which can have spaces.
    """
    if asker and text.startswith((f"{asker}:", f"{asker}：")):
        return asker, text[len(asker) + 1 :].lstrip()
    turn = _TYPED.fullmatch(text)
    return (turn[1], turn[2]) if turn else None


def write_question(text: str, form: str, asker: str) -> str:
    """A typed question in the form of the questions in rows.

    Args:
        text: the question, optionally as `name:words`, and with quotes or without.
        form: from `QuestionForms`.
        asker: the name before a question that has none; empty: such a question stays as it is.
    """
    name, words = (ASKER in form and split_turn(text, asker)) or (asker, text)
    if ASKER in form and not name:
        return text
    before, _, after = form.partition(WORDS)
    if after and words.startswith(before[-1]):  # they are in quotes already
        before, after = before[:-1], ""
    return before.replace(ASKER, name) + words + after


def role_format(role: Role, questions: QuestionForms, retrieval: str, context: ContextSettings) -> RoleFormat:
    """The form of a role's rows.

    Args:
        role: the role.
        questions: those of its rows, at least one.
        retrieval: how memories were ranked, see `build_data`.
        context: how the contexts were built.
    """
    question, asker = questions.most_common()
    return RoleFormat(
        system_prompt=role.system_prompt,
        question=question,
        asker=asker,
        mode=context.mode,
        separator=SEPARATOR,
        retrieval=retrieval,
        memory_number=context.memory_number,
        memory_length=context.memory_length,
        history_length=context.history_length,
        unit=context.unit,
        memory_order="likeness" if role.memory_ranks is None else "frequency",
        memories=memories_digest(role),
        location=role.location,
    )


def memories_digest(role: Role) -> str:
    """Number and checksum of a role's memories."""
    text = "\0".join(role.memories).encode("utf-8", "surrogatepass")
    return f"{len(role.memories)}, CRC {crc32(text):08x}"
