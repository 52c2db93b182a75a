"""The model of a chat, on this machine or on a server: what it is asked, and replies as text. No torch is imported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from kyon_pl.data.encoding.encode import token_ids
from kyon_pl.data.prompt import TEMPLATES, TrainTurns
from kyon_pl.errors import SettingError, no_such_choice
from kyon_pl.runs.prompt_format import PromptFormat, RoleFormat, read_prompt_format

REPLACEMENT_CHARACTER = "\ufffd"  # the bytes of an incomplete character decode to it
SEEDS = range(-(2**63), 2**64)  # what torch.manual_seed takes
ROLE_TEMPERATURE = 0.8


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: maximum length of a reply, in tokens.
        temperature: divides the logits; 0 is greedy decoding.
        top_p: sample from the most likely tokens whose probabilities add up to this.
        repetition_penalty: above 1, tokens that already occurred become less likely.
        seed: of the random generator.

    Raises:
        SettingError: a number out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for key, in_range, fix in (
            ("max_new_tokens", self.max_new_tokens >= 1, "Set 1 or more."),
            ("temperature", not self.temperature or _is_factor(self.temperature), "Set 0 for greedy decoding, or 0.8."),
            ("top_p", 0 < self.top_p <= 1, "Set 1 for no limit, or less."),
            ("repetition_penalty", _is_factor(self.repetition_penalty), "Set 1 for none, or about 1.1."),
            ("seed", self.seed in SEEDS, f"Set 0 to {SEEDS[-1]}."),
        ):
            if not in_range:
                raise SettingError(key, f"{getattr(self, key)} is out of range", fix)


def sampling_for(sampling: Sampling, temperature: float | None, top_p: float | None, plays_role: bool) -> Sampling:
    """Fill in temperature and top_p: 0.8 and 0.8 for a role, as the published model samples, else greedy decoding.

    Args:
        sampling: the other parameters.
        temperature: as the user set it; None: unset.
        top_p: as the user set it; None: unset.
        plays_role: whether a role replies.

    Raises:
        SettingError: a number out of range.
    """
    default_temperature, default_top_p = (ROLE_TEMPERATURE, 0.8) if plays_role else (0.0, 1.0)
    return replace(
        sampling,
        temperature=default_temperature if temperature is None else temperature,
        top_p=default_top_p if top_p is None else top_p,
    )


def sampling_for_retry(sampling: Sampling, retries: int, *, samples: bool) -> Sampling:
    """Another seed; and greedy decoding, which would give the same reply again, can become sampling.

    Args:
        sampling: of the reply before.
        retries: how often the question was asked again, with this time.
        samples: whether greedy decoding becomes sampling.

    Raises:
        SettingError: there is no next seed.
    """
    temperature = sampling.temperature or (ROLE_TEMPERATURE if samples else 0.0)
    return replace(sampling, temperature=temperature, seed=sampling.seed + retries)


def _is_factor(number: float) -> bool:
    """Whether logits can be divided and multiplied by it: beyond, they would become infinite, and no token be drawn."""
    return 0.001 <= number <= 1000


def check_max_tokens(max_tokens: int, setting: str, reply_tokens: int) -> None:
    """Check that a prompt of at least four tokens fits beside the longest reply.

    Args:
        max_tokens: maximum length of prompt and reply together.
        setting: the name of the setting that limits the reply.
        reply_tokens: its value.

    Raises:
        SettingError: the prompt does not fit.
    """
    if max_tokens < reply_tokens + 4:
        found = f"{max_tokens} leaves no room for a prompt, since the reply can take {reply_tokens}"
        raise SettingError("max_tokens", found, f"Raise it, or lower {setting}")


@dataclass(frozen=True)
class ChatReply:
    """A reply.

    Attributes:
        text: the reply.
        stopped: whether the model ended it with the end-of-sequence token.
        interrupted: whether Ctrl-C or `StopReply` ended it.
    """

    text: str
    stopped: bool
    interrupted: bool = False


class StopReply(Exception):  # noqa: N818 (not an error)
    """Raised by `on_text` to end a reply."""


@dataclass
class ChatModel(ABC):
    """A model that replies.

    Attributes:
        tokenizer: a `ChatGLMTokenizer`, or one of the same interface.
        base: name of the base or merged model, for messages.
        template: the prompt template it was trained with.
        train_turns: which turns were trained, see `kyon_pl.data.prompt.TrainTurns`.
        adapters: names; the first is the default. Empty for a merged model.
        sources: `data.source` of the first adapter's training; empty if it is not recorded.
        roles: how the rows of its training were written, by role; empty if it is not recorded.
    """

    tokenizer: Any
    base: str
    template: str
    train_turns: TrainTurns
    adapters: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    roles: Mapping[str, RoleFormat] = field(default_factory=dict)

    def count_tokens(self, text: str) -> int:
        """The number of tokens of a text, as `build-data` counts them."""
        return len(token_ids(text, self.tokenizer))

    @abstractmethod
    def reply(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_text: Callable[[str], object] = lambda text: None,
        adapter: str | None = "",
    ) -> ChatReply:
        """Reply to a prompt. Ctrl-C ends the reply and keeps the text so far.

        Args:
            prompt: token ids.
            sampling: how tokens are chosen.
            on_text: called with each new piece of text. It can raise `StopReply` to end the reply.
            adapter: name of an adapter; empty: the first; None: the base model without an adapter.

        Raises:
            MachineError: memory or connection failed.
        """


def roles_of_run(model: ChatModel) -> list[str]:
    """The roles of the first adapter's rows that can be played here, as `--characters` takes them.

    Those of the demo, if it was trained on the demo's rows and nothing else; else those that `build-data` has recorded
    and that are still where they were.
    """
    if model.sources == ("demo",):
        return ["demo"]
    locations = [form.location for form in model.roles.values()]
    return [name for name in locations if name and (name.startswith("demo/") or Path(name).exists())]


def choose_format(folder: Path, template: str | None) -> PromptFormat:
    """How prompts to a model are worded: as its folder records it, else as `--template` says.

    Args:
        folder: of an adapter or a merged model.
        template: of the command line; None: not given.

    Raises:
        SettingError: there is no such template, or the training had another one.
        CheckpointError: the record cannot be read.
    """
    recorded = read_prompt_format(folder)
    if template and template not in TEMPLATES:
        raise no_such_choice("template", template, TEMPLATES)
    if template and recorded and template != recorded.template:
        found = f"{template!r}, but the adapter was trained with {recorded.template!r}"
        raise SettingError("template", found, "Leave --template out, so that prompts match the training")
    return recorded or PromptFormat(template or "raw")


class Decoder(Protocol):
    """The part of a tokenizer that `TextStreamer` uses."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Token ids to text."""


class TextStreamer:
    """Decodes tokens as they come; a character of several tokens is held back until it is complete.

    Args:
        tokenizer: decodes the tokens.
        on_text: called with each new piece of text.

    Attributes:
        text: all text so far.
    """

    def __init__(self, tokenizer: Decoder, on_text: Callable[[str], object]) -> None:
        self.tokenizer = tokenizer
        self.on_text = on_text
        self.token_ids: list[int] = []
        self.text = ""

    def put(self, token: int) -> None:
        """Add a token."""
        self.put_all([token])

    def put_all(self, tokens: Sequence[int]) -> None:
        """Add tokens."""
        self.token_ids += tokens
        self.emit(self._decode().rstrip(REPLACEMENT_CHARACTER))

    def end(self) -> None:
        """Emit the rest, including an incomplete character."""
        self.emit(self._decode())

    def _decode(self) -> str:
        return self.tokenizer.decode(self.token_ids, skip_special_tokens=True)

    def emit(self, text: str) -> None:
        """Pass on what is new in the text so far."""
        if len(text) > len(self.text):
            self.on_text(text[len(self.text) :])
            self.text = text
