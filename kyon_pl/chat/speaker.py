# mypy: allow-untyped-calls
"""A model that replies: a base with its adapter, or a merged model, with what it was trained to be asked in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from kyon_pl.chat.role_play import Pieces
from kyon_pl.chatglm2.generation import stream_reply
from kyon_pl.data.prompt import TrainTurns
from kyon_pl.errors import SettingError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: the longest reply.
        temperature: divides the logits; 0: always the likeliest token.
        top_p: draw from the likeliest tokens that make up this much probability.
        repetition_penalty: over 1, tokens that were there become less likely.
        seed: of the draws.

    Raises:
        SettingError: a number that none of these can be.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for key, possible, fix in (
            ("max_new_tokens", self.max_new_tokens >= 1, "Set 1 or more."),
            ("temperature", 0 <= self.temperature < float("inf"), "Set 0 for the likeliest token, or about 0.8."),
            ("top_p", 0 < self.top_p <= 1, "Set 1 for no limit, or less."),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "Set 1 for none, or about 1.1."),
        ):
            if not possible:
                raise SettingError(key, f"{getattr(self, key)} is impossible", fix)


def check_room(max_tokens: int, setting: str, reply_tokens: int) -> None:
    """Refuse a reply that leaves no room for its prompt, which has at least the prefix and a token or two.

    Args:
        max_tokens: of prompt and reply together.
        setting: what says how long a reply may be.
        reply_tokens: its number.

    Raises:
        SettingError: there is none.
    """
    if max_tokens < reply_tokens + 4:
        found = f"{max_tokens}, and the reply alone may have {reply_tokens}"
        raise SettingError("max_tokens", found, f"Raise it, or lower {setting}")


@dataclass(frozen=True)
class Said:
    """A reply.

    Attributes:
        text: of it.
        stopped: the model ended it itself.
    """

    text: str
    stopped: bool


class StopReply(Exception):  # noqa: N818 (it is no error)
    """Raised by who listens to a reply, to end it."""


@dataclass
class Speaker:
    """A model that replies.

    Attributes:
        model: in evaluation mode.
        tokenizer: its own.
        base: where its base or merged model is from, for people.
        template: how it was trained to be asked.
        train_turns: whether earlier replies ended in training.
        adapters: what they are called here, and in PEFT; the first is used where none is named. None: it is merged.
    """

    model: nn.Module
    tokenizer: Any
    base: str
    template: str
    train_turns: TrainTurns
    adapters: Mapping[str, str]

    @property
    def tuned(self) -> bool:
        """It is a base with an adapter, which can be taken away for a while."""
        return bool(self.adapters)

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def reply(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_text: Callable[[str], object] = lambda text: None,
        adapter: str | None = "",
    ) -> Said:
        """Reply to a prompt; Ctrl-C ends the reply, and what was said until then is the reply.

        Args:
            prompt: its ids.
            sampling: how tokens are chosen.
            on_text: told the reply piece by piece. `StopReply` raised there does what Ctrl-C does.
            adapter: the name of one of the adapters; empty: the first; None: let the base reply.
        """
        pieces = Pieces(self.tokenizer, on_text)
        with self._speaking_as(adapter):
            try:
                reply = stream_reply(
                    self.model,
                    prompt,
                    max_new_tokens=sampling.max_new_tokens,
                    on_token=pieces.put,
                    eos_token_id=self.tokenizer.eos_token_id,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    repetition_penalty=sampling.repetition_penalty,
                    seed=sampling.seed,
                )
                pieces.end()
            except (KeyboardInterrupt, StopReply):
                return Said(pieces.text, stopped=False)
        return Said(pieces.text, reply.stopped)

    def _speaking_as(self, adapter: str | None) -> AbstractContextManager[None]:
        model: Any = self.model
        if not self.adapters:
            return nullcontext()
        if adapter is None:
            return model.disable_adapter()  # type: ignore[no-any-return]
        model.set_adapter(self.adapters[adapter or next(iter(self.adapters))], inference_mode=True)
        return nullcontext()
