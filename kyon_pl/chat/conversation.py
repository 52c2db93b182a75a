"""What has been said, and what the model is asked next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from kyon_pl.chat.role_play import RolePlay
from kyon_pl.chat.speaker import Said, Sampling, Speaker
from kyon_pl.data.encoding.encode import EncodeSettings, encode_pairs
from kyon_pl.data.prompt import Message
from kyon_pl.errors import DataError


@dataclass(frozen=True)
class Turn:
    """A question, what it became, and the reply.

    Attributes:
        typed: by the person.
        question: as the model got it.
        reply: whole, or what was said until Ctrl-C.
        base: what the base replied, if it was asked too.
        retries: how often this question was asked again.
    """

    typed: str
    question: str
    reply: Said
    base: Said | None = None
    retries: int = 0


@dataclass
class Conversation:
    """Questions and replies, oldest first.

    Attributes:
        speaker: who replies.
        max_tokens: the longest prompt with its reply; older turns go first.
        role: who is played; None: the turns stand alone.
        system: before the first turn, where no role is played.
        turns: so far.
        asker: whose name stands before a question to a role.
        adapter: the one of the speaker's that replies; empty: the first.
    """

    speaker: Speaker
    max_tokens: int = 2048
    role: RolePlay | None = None
    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    asker: str = ""
    adapter: str = ""

    def ask(
        self,
        typed: str,
        sampling: Sampling,
        on_text: Callable[[str], object] = lambda text: None,
    ) -> Said:
        """Ask, and remember question and reply.

        Args:
            typed: the question.
            sampling: how tokens are chosen.
            on_text: told the reply piece by piece.

        Raises:
            DataError: the question alone is too long.
        """
        question = self.question(typed)
        prompt = self.prompt_ids(question, sampling.max_new_tokens)
        said = self.speaker.reply(prompt, sampling, on_text, self.adapter)
        self.turns.append(Turn(typed, question, said))
        return said

    def question(self, typed: str) -> str:
        """What was typed, as the model is asked it: behind the asker's name, where there is a role."""
        return self.role.question(typed, self.asker) if self.role else typed

    def compare(self, sampling: Sampling, on_text: Callable[[str], object] = lambda text: None) -> Said:
        """What the base, without its adapter, replies to the last question. Later questions do not build on it."""
        last = self.turns[-1]
        prompt = self._before_last().prompt_ids(last.question, sampling.max_new_tokens)
        said = self.speaker.reply(prompt, sampling, on_text, adapter=None)
        self.turns[-1] = replace(last, base=said)
        return said

    def memories(self) -> tuple[str, ...]:
        """What the last question brought to the role's mind, nearest first."""
        if not (self.role and self.turns):
            return ()
        earlier = self._before_last()
        return self.role.context(self.turns[-1].question, earlier.said()).memories

    def said(self) -> list[str]:
        """Questions and replies, oldest first."""
        return [text for turn in self.turns for text in (turn.question, turn.reply.text)]

    def _before_last(self) -> Conversation:
        return replace(self, turns=self.turns[:-1])

    def prompt_ids(self, question: str, max_new_tokens: int) -> list[int]:
        """The ids that ask a question, through the same `render` as in training.

        Args:
            question: the newest.
            max_new_tokens: room to leave for the reply.

        Raises:
            DataError: the question alone is too long.
        """
        settings = EncodeSettings(
            max_tokens=max(4, self.max_tokens - max_new_tokens),
            template=self.speaker.template,
            train_turns=self.speaker.train_turns,
        )
        (row,) = encode_pairs([(self.asked(question), None)], self.speaker.tokenizer, settings)
        if row.problem:
            fix = "Ask in fewer words, or raise --max_tokens or lower --max_new_tokens"
            raise DataError("question", row.problem.replace("max_tokens", "the room beside the reply"), fix)
        return row.input_ids

    def asked(self, question: str) -> str | Sequence[Message]:
        """The context of a role's row, or the messages up to the question."""
        if self.role:
            return self.role.context(question, self.said()).text
        return [*self.messages(), Message(role="user", content=question)]

    def messages(self) -> list[Message]:
        """The conversation as a row that can be trained on."""
        system = self.role.role.system_prompt if self.role else self.system
        messages = [Message(role="system", content=system)] if system else []
        for turn in self.turns:
            messages.append(Message(role="user", content=turn.question))
            messages.append(Message(role="assistant", content=turn.reply.text))
        return messages
