"""A conversation with a model, and the prompt of its next question, as a role or without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from kyon_pl.chat.model import ChatModel, ChatReply, Sampling, check_max_tokens
from kyon_pl.chat.role_play import RolePlay
from kyon_pl.data.encoding.encode import EncodedRow, EncodeSettings, encode_pairs
from kyon_pl.data.prompt import Message, render
from kyon_pl.data.reading.texts import MAX_CHARACTERS, SURROGATE
from kyon_pl.errors import DataError, SettingError
from kyon_pl.roles.role import SYSTEM_PROMPT

MAX_QUESTION_CHARACTERS = MAX_CHARACTERS  # as of a row


@dataclass(frozen=True)
class Turn:
    """A question and its reply.

    Attributes:
        typed: the question as typed.
        question: the question in the prompt.
        reply: the reply, or its text up to Ctrl-C.
        base: the base model's reply, if it was asked too.
        retries: how often the question was asked again.
        versions: the replies to it that are kept, oldest first, with `reply` among them; empty: only `reply`.
        memories: those in its prompt, in their order, once the reply is complete.
    """

    typed: str
    question: str
    reply: ChatReply
    base: ChatReply | None = None
    retries: int = 0
    versions: tuple[ChatReply, ...] = ()
    memories: tuple[str, ...] = ()


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
        """The prompt's token ids. Arguments and errors are those of `encoded_prompt`."""
        return self.encoded_prompt(question, max_new_tokens).input_ids

    def prompt_text(self, max_new_tokens: int) -> str:
        """The text of the last question's prompt, with its wording, after what was left out.

        Args:
            max_new_tokens: as when the question was asked.

        Raises:
            SettingError: nothing has been asked.
        """
        check_has_turns("prompt", self.turns)
        row = self._before_last().encoded_prompt(self.turns[-1].question, max_new_tokens)
        segments = render(row.context, None, self.model.template, self.model.train_turns)
        return "".join(segment.text for segment in segments)

    def encoded_prompt(self, question: str, max_new_tokens: int) -> EncodedRow:
        """The prompt, encoded as in training.

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
        return row

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
