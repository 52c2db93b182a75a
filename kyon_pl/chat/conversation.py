"""A conversation with a model, and the prompt of its next question, as a role or without one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from kyon_pl.chat.model import ChatModel, ChatReply, Sampling, check_max_tokens
from kyon_pl.data.encoding.encode import EncodeSettings, encode_pairs
from kyon_pl.data.prompt import Message
from kyon_pl.data.reading.texts import MAX_CHARACTERS, SURROGATE
from kyon_pl.errors import DataError, SettingError
from kyon_pl.roles.contexts import BuiltContext, ContextLimits, build_context, context_settings
from kyon_pl.roles.retrieval import Retriever
from kyon_pl.roles.role import SYSTEM_PROMPT, Role

MAX_QUESTION_CHARACTERS = MAX_CHARACTERS  # as of a row
_TURN = re.compile(r"([^\s:：]{1,20})[:：]\s*(.*)", re.DOTALL)
_TURN_START = re.compile(r"^[^\s:：]{1,20}[:：]\s*(「)?", re.MULTILINE)


class RolePlay:
    """Builds the context of a question to a role, as in the rows of that role.

    Args:
        role: the role to play.
        retrieval: how memories are ranked, see `kyon_pl.roles.build.build_data`.
        limits: of memories and history.
        count: the number of tokens of a text.

    Raises:
        MachineError: `retrieval` is a model, and sentence-transformers is not installed.
    """

    def __init__(self, role: Role, retrieval: str, limits: ContextLimits, count: Callable[[str], int]) -> None:
        self.role = role
        self.retriever = Retriever(role, retrieval)
        if limits.memory_number is None:
            limits = replace(limits, memory_number=role.memory_number)
        self.settings = context_settings(limits, "tokens", False, count)
        quoted = [bool(start[1]) for memory in role.memories for start in _TURN_START.finditer(memory)]
        self.quotes = sum(quoted) > len(quoted) / 2

    def question(self, text: str, asker: str) -> str:
        """A question as a turn of a dialogue, in 「」 if most turns in the role's memories are.

        Published role data has this form (95 % of its questions), and a model trained on it replies in character only
        to questions of the same form.

        Args:
            text: the question, optionally as `name:text`.
            asker: the name before a question that has none, as in training rows; empty: no name.
        """
        turn = _TURN.fullmatch(text)
        name, words = turn.groups() if turn else (asker, text)
        if self.quotes and name and not words.startswith("「"):
            return f"{name}:「{words}」"
        return text if turn or not asker else f"{asker}:{text}"

    def context(self, question: str, history: Sequence[str]) -> BuiltContext:
        """The context of a row with this question.

        Args:
            question: from `question`.
            history: the turns before it, oldest first.
        """
        row = {"query": question, "answer": "", "chat_history": list(history), "embedding": []}
        (ranked,) = self.retriever.rank([row], 2 * self.settings.memory_number)
        memories = [self.role.memories[i] for i in ranked]
        return build_context(self.role.system_prompt, memories, row, self.settings, self.role.memory_ranks)


@dataclass(frozen=True)
class Turn:
    """A question and its reply.

    Attributes:
        typed: the question as typed.
        question: the question in the prompt.
        reply: the reply, or its text up to Ctrl-C.
        base: the base model's reply, if it was asked too.
        retries: how often the question was asked again.
    """

    typed: str
    question: str
    reply: ChatReply
    base: ChatReply | None = None
    retries: int = 0


def check_has_turns(where: str, turns: Sequence[Turn]) -> None:
    """Check that there is a question to work on.

    Raises:
        SettingError: there are no turns.
    """
    if not turns:
        raise SettingError(where, "nothing has been said", "Ask something first")


def check_question(text: str) -> None:
    """Check that a question can be encoded in reasonable time.

    Raises:
        DataError: it is too long, or has bytes that are not text.
    """
    if len(text) > MAX_QUESTION_CHARACTERS:
        raise DataError("question", f"it has more than {MAX_QUESTION_CHARACTERS:,} characters", "Shorten it")
    if SURROGATE.search(text):
        raise DataError("question", "it has bytes that are not text", "Write it in the encoding of the terminal")


@dataclass
class Conversation:
    """Questions and replies, oldest first.

    Attributes:
        model: replies.
        max_tokens: maximum length of prompt and reply together; older turns are left out first.
        role: the role that is played, or None.
        system: the system prompt without a role.
        turns: the turns so far.
        asker: the name before a question to a role.
        adapter: name of the adapter that replies; empty: the model's first.
    """

    model: ChatModel
    max_tokens: int = 2048
    role: RolePlay | None = None
    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    asker: str = ""
    adapter: str = ""

    def ask(self, typed: str, sampling: Sampling, on_text: Callable[[str], object] = lambda text: None) -> ChatReply:
        """Ask a question and append the turn.

        Args:
            typed: the question.
            sampling: how tokens are chosen.
            on_text: called with each new piece of the reply.

        Raises:
            DataError: the question, or the system prompt with it, is too long, or the question is not text.
        """
        check_question(typed)
        question = self.question(typed)
        prompt = self.prompt_ids(question, sampling.max_new_tokens)
        reply = self.model.reply(prompt, sampling, on_text, self.adapter)
        self.turns.append(Turn(typed, question, reply))
        return reply

    def question(self, typed: str) -> str:
        """The question in the prompt: with a role, behind the asker's name."""
        return self.role.question(typed, self.asker) if self.role else typed

    def compare(self, sampling: Sampling, on_text: Callable[[str], object] = lambda text: None) -> ChatReply:
        """The base model's reply to the last question. It is not part of the history of later questions."""
        last = self.turns[-1]
        prompt = self._before_last().prompt_ids(last.question, sampling.max_new_tokens)
        reply = self.model.reply(prompt, sampling, on_text, adapter=None)
        self.turns[-1] = replace(last, base=reply)
        return reply

    def memories(self) -> tuple[str, ...]:
        """The memories in the prompt of the last question, in its order."""
        if not (self.role and self.turns):
            return ()
        return self.role.context(self.turns[-1].question, self._before_last().history()).memories

    def history(self) -> list[str]:
        """Questions and replies, oldest first."""
        return [text for turn in self.turns for text in (turn.question, turn.reply.text)]

    def _before_last(self) -> Conversation:
        return replace(self, turns=self.turns[:-1])

    def prompt_ids(self, question: str, max_new_tokens: int) -> list[int]:
        """The prompt's token ids, encoded as in training.

        Args:
            question: the new question.
            max_new_tokens: tokens to leave for the reply.

        Raises:
            SettingError: a reply can take more than `max_tokens`.
            DataError: the question, or the system prompt with it, is too long.
        """
        check_max_tokens(self.max_tokens, "max_new_tokens", max_new_tokens)
        settings = EncodeSettings(
            max_tokens=self.max_tokens - max_new_tokens,
            template=self.model.template,
            train_turns=self.model.train_turns,
        )
        (row,) = encode_pairs([(self.prompt(question), None)], self.model.tokenizer, settings)
        if row.problem:
            raise self._too_long(question, row.problem, settings)
        return row.input_ids

    def _too_long(self, question: str, problem: str, settings: EncodeSettings) -> DataError:
        """An error that names what is too long for the prompt: the question, or the system prompt before it."""
        (alone,) = encode_pairs([([Message(role="user", content=question)], None)], self.model.tokenizer, settings)
        what = "question" if alone.problem or not (self.role or self.system) else "system prompt"
        where = what
        if what == "system prompt" and self.role:
            folder = self.role.role.folder
            where = str(folder / SYSTEM_PROMPT) if folder else f"{what} of {self.role.role.name}"
        fix = f"Shorten the {what}, raise --max_tokens or lower --max_new_tokens"
        return DataError(where, problem.replace("max_tokens", "the room beside the reply"), fix)

    def prompt(self, question: str) -> str | Sequence[Message]:
        """The context of a role's row, or the messages up to the question."""
        if self.role:
            return self.role.context(question, self.history()).text
        return [*self.messages(), Message(role="user", content=question)]

    def messages(self) -> list[Message]:
        """The conversation as the `messages` of a training row."""
        system = self.role.role.system_prompt if self.role else self.system
        messages = [Message(role="system", content=system)] if system else []
        for turn in self.turns:
            messages.append(Message(role="user", content=turn.question))
            messages.append(Message(role="assistant", content=turn.reply.text))
        return messages
