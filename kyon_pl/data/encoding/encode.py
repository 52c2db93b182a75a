"""Encoding of rows: text to token ids and the positions of trained tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from kyon_pl.data.prompt import Message, Segment, TrainTurns, render, shrink_context, shrink_messages
from kyon_pl.data.reading.quality import oddities, row_hash
from kyon_pl.data.split import question_hash
from kyon_pl.demo import fetch_base
from kyon_pl.errors import DataError, SettingError, no_such_choice
from kyon_pl.hub.download import TOKENIZER_FILES

if TYPE_CHECKING:
    from kyon_pl.chatglm2 import ChatGLMTokenizer

PAD_TOKEN_ID = 0
OverLength = Literal["shrink_context", "drop", "error"]
Pair = tuple[str | Sequence[Message], str | None]
"""A context, or the messages up to the question; and the target, None for a prompt without a reply."""


class Tokenizer(Protocol):
    """The tokenizer interface that encoding uses; `ChatGLMTokenizer` implements it."""

    @property
    def eos_token_id(self) -> int:
        """Id of the end of sequence."""

    def __call__(self, text: list[str], *, add_special_tokens: bool, return_attention_mask: bool) -> Mapping[str, Any]:
        """Return `input_ids`, the ids of each text; `add_special_tokens` puts `[gMASK] sop` in front."""


@dataclass(frozen=True)
class EncodeSettings:
    """The settings that determine the ids of a row.

    Attributes:
        max_tokens: longest row in tokens, end of sequence included; None: no limit, as in the original.
        over_length: handling of longer rows. `shrink_context`: remove the oldest text of the context, see
            `shrink_context` in `kyon_pl.data.prompt`; `drop`: the row is a bad row; `error`: stop the run.
        append_eos: append the end-of-sequence id to each trained reply, so that the model learns to stop.
        template: wording of the prompt, a name in `kyon_pl.data.prompt.TEMPLATES`.
        train_turns: train the `last` reply of a conversation, or `all`.

    Raises:
        SettingError: a value is not allowed.
    """

    max_tokens: int | None = 2048
    over_length: OverLength = "shrink_context"
    append_eos: bool = True
    template: str = "raw"
    train_turns: TrainTurns = "last"

    def __post_init__(self) -> None:
        render("", template=self.template)
        if self.max_tokens is not None and self.max_tokens < 4:
            fix = "Set 4 or more, or null for no limit."
            raise SettingError("data.max_tokens", f"{self.max_tokens} has no room for a row", fix)
        for name, choices in (("over_length", get_args(OverLength)), ("train_turns", get_args(TrainTurns))):
            if (value := getattr(self, name)) not in choices:
                raise no_such_choice(f"data.{name}", value, choices)


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of a row, and which of them are trained.

    Attributes:
        input_ids: ids of context, target and end of sequence; empty if there is a problem.
        seq_len: number of ids before the first trained one, prefix included; with one reply, the length of the context.
        masked: starts and ends, alternating, of the stretches after `seq_len` without labels. Empty unless several
            replies are trained.
        cut_tokens: tokens of the context that were removed to make the row fit.
        problem: why the row cannot be used, as kind, `: ` and details; empty if it can.
        context: the context or messages that were encoded, after what was removed; empty if the row came as ids.
    """

    input_ids: list[int]
    seq_len: int
    masked: tuple[int, ...] = ()
    cut_tokens: int = 0
    problem: str = ""
    context: str | Sequence[Message] = ""

    @property
    def prompt_len(self) -> int:
        """Number of ids before the last reply."""
        return self.masked[-1] if self.masked else self.seq_len


def load_tokenizer(repo_or_folder: str | None, revision: str | None) -> ChatGLMTokenizer | None:
    """Load ChatGLM2's tokenizer, downloading only its files.

    Args:
        repo_or_folder: Hub id or folder. For None and the base `random`, None is returned.
        revision: branch, tag or commit on the Hub.

    Raises:
        MissingFileError: the tokenizer does not exist.
        CheckpointError: the tokenizer cannot be read.
    """
    if repo_or_folder in (None, "random"):
        return None
    from kyon_pl.chatglm2.tokenization import read_tokenizer

    folder = fetch_base(str(repo_or_folder), revision, patterns=[*TOKENIZER_FILES])
    tokenizer = read_tokenizer(folder)
    assert tokenizer.pad_token_id == PAD_TOKEN_ID != tokenizer.eos_token_id
    return tokenizer


def token_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a text without special tokens, in which lengths are counted."""
    return _ids([text], tokenizer, prefix=False)[0]


def preprocess_dialogue(
    example: Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    context_column: str = "context",
    target_column: str = "target",
    max_tokens: int | None = 2048,
    over_length: OverLength = "shrink_context",
    append_eos: bool = True,
    template: str = "raw",
) -> dict[str, Any]:
    """Encode one row. The original's function of this name has no limit and appends no end of sequence.

    Context and target are encoded separately, so a target begins with SentencePiece's dummy prefix, as in the original.

    Args:
        example: a row with a context and a target.
        tokenizer: a `ChatGLMTokenizer`.
        context_column: column of the context.
        target_column: column of the target.
        max_tokens: see `EncodeSettings`.
        over_length: see `EncodeSettings`; `drop` raises an error here.
        append_eos: see `EncodeSettings`.
        template: see `EncodeSettings`.

    Returns:
        `input_ids` and `seq_len`, the number of context ids, prefix included.

    Raises:
        DataError: the row is longer than `max_tokens` and was not shortened.
        SettingError: a setting has an invalid value.
    """
    settings = EncodeSettings(max_tokens, over_length, append_eos, template)
    row = encode_pairs([(example[context_column], example[target_column])], tokenizer, settings)[0]
    if row.problem:
        raise DataError("row", row.problem, "Raise max_tokens, or leave the row out.")
    return {"input_ids": row.input_ids, "seq_len": row.seq_len}


def encode_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer, settings: EncodeSettings) -> list[EncodedRow]:
    """Encode rows of text, shortened or marked as too long according to the settings."""
    limit = settings.max_tokens
    return [
        row if limit is None or len(row.input_ids) <= limit else _fit(row, pair, tokenizer, settings, limit)
        for row, pair in zip(_encode(pairs, tokenizer, settings), pairs, strict=True)
    ]


def _encode(pairs: Sequence[Pair], tokenizer: Tokenizer, settings: EncodeSettings) -> list[EncodedRow]:
    """Encode rows without a limit. The prefix is put before the first segment of each row."""
    rows = [render(*pair, settings.template, settings.train_turns) for pair in pairs]
    first = _ids([row[0].text for row in rows], tokenizer, prefix=True)
    rest = iter(_ids([segment.text for row in rows for segment in row[1:]], tokenizer, prefix=False))
    end = [tokenizer.eos_token_id] if settings.append_eos else []
    return [
        _join(row, [ids, *(next(rest) for _ in row[1:])], end, context)
        for row, ids, (context, _) in zip(rows, first, pairs, strict=True)
    ]


def _join(
    segments: list[Segment], ids_of_segments: list[list[int]], end: list[int], context: str | Sequence[Message]
) -> EncodedRow:
    ids: list[int] = []
    bounds: list[int] = []  # starts and ends of trained stretches, alternating
    for segment, segment_ids in zip(segments, ids_of_segments, strict=True):
        if segment.trained != len(bounds) % 2:
            bounds.append(len(ids))
        ids += segment_ids + end if segment.trained else segment_ids
    seq_len, *masked = bounds or [len(ids)]
    masked = masked if len(masked) % 2 == 0 else [*masked, len(ids)]
    return EncodedRow(ids, seq_len, tuple(masked), context=context)


def _ids(texts: list[str], tokenizer: Tokenizer, *, prefix: bool) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=prefix, return_attention_mask=False)["input_ids"]
    return ids


def _fit(row: EncodedRow, pair: Pair, tokenizer: Tokenizer, settings: EncodeSettings, limit: int) -> EncodedRow:
    """Shorten a row over the limit; the row has a problem if the settings or its length do not allow that."""
    too_long = EncodedRow([], 0, problem=f"too long: {len(row.input_ids)} tokens, and max_tokens is {limit}")
    if settings.over_length != "shrink_context":
        return too_long
    context, target = pair
    max_prompt_tokens = limit - len(row.input_ids) + row.prompt_len  # the last reply is kept

    def fits(shorter: str | Sequence[Message]) -> bool:
        return len(_encode([(shorter, None)], tokenizer, settings)[0].input_ids) <= max_prompt_tokens

    shorter = shrink_context(context, fits) if isinstance(context, str) else shrink_messages(context, fits)
    if shorter is None:
        return too_long
    shortened = _encode([(shorter, target)], tokenizer, settings)[0]
    return replace(shortened, cut_tokens=len(row.input_ids) - len(shortened.input_ids))


def encode_columns(
    columns: Mapping[str, list[Any]], tokenizer: Tokenizer | None, settings: EncodeSettings
) -> dict[str, list[Any]]:
    """Encode a batch of checked rows, one output row per input row; the function of `datasets.map`.

    Args:
        columns: a batch with the columns of `kyon_pl.data.reading.sources.ROW_FEATURES`.
        tokenizer: may be None if all rows have ids.
        settings: how to encode.

    Returns:
        The columns of `ENCODED_FEATURES`.
    """
    rows = _encode_columns(columns, tokenizer, settings)
    texts = list(zip(columns["context"], columns["target"], rows, strict=True))
    return {
        "input_ids": [row.input_ids for row in rows],
        "seq_len": [row.seq_len for row in rows],
        "masked": [row.masked for row in rows],
        "cut_tokens": [row.cut_tokens for row in rows],
        "problem": [row.problem for row in rows],
        "question": [question_hash(context or row.input_ids[: row.seq_len]) for context, _, row in texts],
        "other_questions": [_other_questions(messages, settings.train_turns) for messages in columns["messages"]],
        "dialogue": columns["dialogue"],
        "odd": [oddities(context, target, row.input_ids[row.prompt_len :]) for context, target, row in texts],
        "row_hash": [row_hash(context, target, row.input_ids) for context, target, row in texts],
    }


def _encode_columns(
    columns: Mapping[str, list[Any]], tokenizer: Tokenizer | None, settings: EncodeSettings
) -> list[EncodedRow]:
    rows = [
        EncodedRow([], 0, problem=problem) if problem else _encoded_already(ids, seq_len, settings.max_tokens)
        for problem, ids, seq_len in zip(columns["problem"], columns["input_ids"], columns["seq_len"], strict=True)
    ]
    with_text = [i for i, row in enumerate(rows) if not row.problem and not row.input_ids]
    if with_text:
        assert tokenizer is not None
        pairs = [(columns["messages"][i] or columns["context"][i], columns["target"][i]) for i in with_text]
        for i, row in zip(with_text, encode_pairs(pairs, tokenizer, settings), strict=True):
            rows[i] = row
    return rows


def _other_questions(messages: list[Message], train_turns: TrainTurns) -> list[int]:
    """Hash the questions of trained replies before the last."""
    if train_turns != "all":
        return []
    return [question_hash(message["content"]) for message in messages[:-1] if message["role"] == "user"]


def _encoded_already(ids: list[int], seq_len: int, limit: int | None) -> EncodedRow:
    if limit is not None and len(ids) > limit:
        return EncodedRow([], 0, problem=f"too long: {len(ids)} ready-made ids, and max_tokens is {limit}")
    return EncodedRow(ids, seq_len)
