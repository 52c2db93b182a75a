"""A role in a chat: questions and contexts are written as in the rows of the run, or by the role's own files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kyon_pl.roles.contexts import BuiltContext, ContextLimits, ContextSettings, build_context, context_settings
from kyon_pl.roles.prompt_format import memories_digest, split_turn, write_question
from kyon_pl.roles.retrieval import Retriever
from kyon_pl.roles.role import Role
from kyon_pl.runs.prompt_format import RoleFormat

log = logging.getLogger(__name__)

_TURN_START = re.compile(r"^[^\s:：]{1,20}[:：]\s*(「)?", re.MULTILINE)


class RolePlay:
    """Builds the context of a question to a role, as in the rows of that role.

    What differs between the role, the limits and the rows of the run is logged, in one line.

    Args:
        role: the role to play.
        retrieval: how memories are ranked, see `kyon_pl.roles.build.build_data`; None: as in the rows of the run.
        limits: of memories and history; None in it: as in the rows of the run.
        count: the number of tokens of a text.
        forms: how the rows of the run were written, by role; empty if it is not recorded. A role that is not among
            them is asked like the first one.

    Raises:
        MachineError: `retrieval` is a model, and sentence-transformers is not installed.
    """

    def __init__(
        self,
        role: Role,
        retrieval: str | None,
        limits: ContextLimits,
        count: Callable[[str], int],
        forms: Mapping[str, RoleFormat] | None = None,
    ) -> None:
        forms = forms or {}
        self.form = forms.get(role.name) or next(iter(forms.values()), None)
        if self.form and (difference := _difference(role, limits, forms)):
            log.warning("role %s: %s", role.name, difference)
        self.role = _as_in_rows(role, forms[role.name]) if role.name in forms else role
        self.settings = _settings(role, self.form, limits, count)
        self.retriever = Retriever(role, retrieval or _retrieval(self.form))
        quoted = [bool(start[1]) for memory in role.memories for start in _TURN_START.finditer(memory)]
        self.quotes = sum(quoted) > len(quoted) / 2

    def question(self, text: str, asker: str) -> str:
        """A question as a turn of a dialogue, in the form of the questions in the rows of the run.

        If that is not recorded, it is in 「」 if most turns in the role's memories are. Published role data has this
        form (95 % of its questions), and a model trained on it replies in character only to questions of the same form.

        Args:
            text: the question, optionally as `name:text`.
            asker: the name before a question that has none; empty: the most frequent asker in the rows, if recorded.
        """
        if self.form:
            return write_question(text, self.form.question, asker or self.form.asker)
        turn = split_turn(text)
        name, words = turn or (asker, text)
        if self.quotes and name and not words.startswith("「"):
            return f"{name}:「{words}」"
        return text if turn or not asker else f"{asker}:{text}"

    def context(self, question: str, history: Sequence[str]) -> BuiltContext:
        """The context of a row with this question.

        Args:
            question: from `question`.
            history: the turns before it, oldest first.
        """
        # rows of mode original lack the turn before the question
        kept = [*history[:-1]] if self.settings.mode == "original" else [*history]
        row = {"query": question, "answer": "", "chat_history": kept, "embedding": []}
        (ranked,) = self.retriever.rank([row], self.settings.candidates)
        memories = [self.role.memories[i] for i in ranked]
        return build_context(self.role.system_prompt, memories, row, self.settings, self.role.memory_ranks)


def _as_in_rows(role: Role, form: RoleFormat) -> Role:
    ranks = None if form.memory_order == "likeness" else role.memory_ranks
    return replace(role, system_prompt=form.system_prompt, memory_ranks=ranks)


def _settings(
    role: Role, form: RoleFormat | None, limits: ContextLimits, count: Callable[[str], int]
) -> ContextSettings:
    """How contexts are built: by the user's limits, the rows of the run, or the defaults of `build-data`."""
    if form is None:
        number = role.memory_number if limits.memory_number is None else limits.memory_number
        return context_settings(replace(limits, memory_number=number), "tokens", False, count)
    recorded = {key: getattr(form, key) for key, value in vars(limits).items() if value is None}
    count = count if form.unit == "tokens" else len
    return context_settings(replace(limits, **recorded), form.unit, False, count, form.mode)


def _retrieval(form: RoleFormat | None) -> str:
    """How the rows of the run ranked memories; a typed question has no stored vector."""
    return form.retrieval if form and form.retrieval != "stored" else "auto"


def _difference(role: Role, limits: ContextLimits, forms: Mapping[str, RoleFormat]) -> str:
    """What differs from the rows of the run, and which one is used; empty if nothing does."""
    form = forms.get(role.name)
    if form is None:
        named = f"{', '.join([*forms][:5])}{', …' if len(forms) > 5 else ''}"
        first = next(iter(forms))
        return f"it is not in the run's rows ({named}); it is asked in the form of {first}, with its own system prompt"
    found = []
    if form.system_prompt != role.system_prompt:
        found.append("system prompt (the run's is used)")
    if form.memories != memories_digest(role):
        found.append("memories (those given here are used)")
    if form.memory_order == "frequency" and role.memory_ranks is None:
        found.append("memory order (by likeness, since the role has no memory_order.json)")
    for key, value in vars(limits).items():
        if value not in (None, getattr(form, key)):
            found.append(f"{key} ({value} is used, and the run's rows had {getattr(form, key)})")
    return f"differs from the run's rows: {', '.join(found)}" if found else ""
