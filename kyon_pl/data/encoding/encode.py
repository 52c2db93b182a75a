"""A row as token ids and trained positions, and the tokenizer that makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from kyon_pl.data.prompt import Message, Segment, TrainTurns, render, shrink_context, shrink_messages
from kyon_pl.data.reading.quality import oddities, row_hash
from kyon_pl.data.split import question_hash
from kyon_pl.demo import fetch_base
from kyon_pl.errors import DataError, SettingError
from kyon_pl.hub.download import TOKENIZER_FILES

if TYPE_CHECKING:
    from kyon_pl.chatglm2 import ChatGLMTokenizer


PAD_TOKEN_ID = 0


def load_tokenizer(repo_or_folder: str | None, revision: str | None) -> ChatGLMTokenizer | None:
    """ChatGLM2's tokenizer, of which nothing but its files is downloaded; None for None and for the base `random`.

    Args:
        repo_or_folder: Hub id or folder.
        revision: on the Hub.

    Raises:
        MissingFileError: there is none.
        CheckpointError: it cannot be read.
    """
    if repo_or_folder in (None, "random"):
        return None
    from kyon_pl.chatglm2.tokenization import read_tokenizer

    folder = fetch_base(str(repo_or_folder), revision, patterns=[*TOKENIZER_FILES])
    tokenizer = read_tokenizer(folder)
    assert tokenizer.pad_token_id == PAD_TOKEN_ID != tokenizer.eos_token_id
    return tokenizer


OverLength = Literal["shrink_context", "drop", "error"]
Pair = tuple[str | Sequence[Message], str | None]
"""What is asked, a context or the messages up to the question; and the target, None in a prompt without a reply."""


class Tokenizer(Protocol):
    """What is asked of a tokenizer here; `ChatGLMTokenizer` has it."""

    @property
    def eos_token_id(self) -> int:
        """End of sequence."""

    def __call__(self, text: list[str], *, add_special_tokens: bool, return_attention_mask: bool) -> Mapping[str, Any]:
        """`input_ids`: the ids of each text, with `[gMASK] sop` in front if asked for."""


@dataclass(frozen=True)
class EncodeSettings:
    """What the ids of a row depend on, besides its text and the tokenizer.

    Attributes:
        max_tokens: the longest row, in tokens, end of sequence included; None: no limit, as in the original.
        over_length: what becomes of a longer one. `shrink_context`: the oldest of its context goes, see the function of
            that name; `drop`: the row counts as a bad one; `error`: the run stops.
        append_eos: end each trained reply with the end-of-sequence id, so that the model learns to stop.
        template: how a context becomes a prompt, a name in `kyon_pl.data.prompt.TEMPLATES`.
        train_turns: of a conversation, train the `last` reply, or `all`.

    Raises:
        SettingError: a value that none of these can have.
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
        if self.over_length not in get_args(OverLength):
            found = f"there is no {self.over_length!r}"
            raise SettingError("data.over_length", found, f"Choose one of: {', '.join(get_args(OverLength))}.")
        if self.train_turns not in get_args(TrainTurns):
            found = f"there is no {self.train_turns!r}"
            raise SettingError("data.train_turns", found, f"Choose one of: {', '.join(get_args(TrainTurns))}.")


@dataclass(frozen=True)
class EncodedRow:
    """A row as the model sees it.

    Attributes:
        input_ids: context, then target and end of sequence; empty if there is a problem.
        seq_len: number of ids before the first trained one, prefix included; in a row with one reply: its context.
        masked: where ids behind that carry no labels: start and end of each stretch, one after the other. Empty unless
            several replies are trained.
        cut_tokens: tokens of the context that were left out to make the row fit.
        problem: why the row cannot be used: the kind, then `: ` and details; empty if it can.
    """

    input_ids: list[int]
    seq_len: int
    masked: tuple[int, ...] = ()
    cut_tokens: int = 0
    problem: str = ""

    @property
    def prompt_len(self) -> int:
        """Number of ids before the last reply."""
        return self.masked[-1] if self.masked else self.seq_len


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
    """Encode one row; the original's function of that name, which had no limit and appended no end of sequence.

    Context and target are encoded separately, so a target begins with SentencePiece's dummy prefix, as in the original.

    Args:
        example: a row with a context and a target.
        tokenizer: a `ChatGLMTokenizer`.
        context_column: where the context stands.
        target_column: where the target stands.
        max_tokens: see `EncodeSettings`.
        over_length: see `EncodeSettings`; a row that would be dropped is refused here.
        append_eos: see `EncodeSettings`.
        template: see `EncodeSettings`.

    Returns:
        `input_ids` and `seq_len`, the number of context ids, prefix included.

    Raises:
        DataError: the row is longer than `max_tokens` and is not to be, or cannot be, shrunk.
        SettingError: a setting has an impossible value.
    """
    settings = EncodeSettings(max_tokens, over_length, append_eos, template)
    row = encode_pairs([(example[context_column], example[target_column])], tokenizer, settings)[0]
    if row.problem:
        raise DataError("row", row.problem, "Raise max_tokens, or leave the row out.")
    return {"input_ids": row.input_ids, "seq_len": row.seq_len}


def encode_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer, settings: EncodeSettings) -> list[EncodedRow]:
    """Encode rows of text together."""
    limit = settings.max_tokens
    return [
        row if limit is None or len(row.input_ids) <= limit else _fit(row, pair, tokenizer, settings, limit)
        for row, pair in zip(_encode(pairs, tokenizer, settings), pairs, strict=True)
    ]


def _encode(pairs: Sequence[Pair], tokenizer: Tokenizer, settings: EncodeSettings) -> list[EncodedRow]:
    """However long they get. The first segment of a row takes the prefix."""
    rows = [render(*pair, settings.template, settings.train_turns) for pair in pairs]
    first = _ids([row[0].text for row in rows], tokenizer, prefix=True)
    rest = iter(_ids([segment.text for row in rows for segment in row[1:]], tokenizer, prefix=False))
    end = [tokenizer.eos_token_id] if settings.append_eos else []
    return [_joined(row, [ids, *(next(rest) for _ in row[1:])], end) for row, ids in zip(rows, first, strict=True)]


def _joined(segments: list[Segment], ids_of_segments: list[list[int]], end: list[int]) -> EncodedRow:
    ids: list[int] = []
    bounds: list[int] = []  # where training begins and ends, in turn
    for segment, own in zip(segments, ids_of_segments, strict=True):
        if segment.trained != len(bounds) % 2:
            bounds.append(len(ids))
        ids += own + end if segment.trained else own
    seq_len, *masked = bounds or [len(ids)]
    return EncodedRow(ids, seq_len, tuple(masked if len(masked) % 2 == 0 else [*masked, len(ids)]))


def _ids(texts: list[str], tokenizer: Tokenizer, *, prefix: bool) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=prefix, return_attention_mask=False)["input_ids"]
    return ids


def _fit(row: EncodedRow, pair: Pair, tokenizer: Tokenizer, settings: EncodeSettings, limit: int) -> EncodedRow:
    """A row over the limit, shrunk if the settings say so and it can be."""
    too_long = EncodedRow([], 0, problem=f"too long: {len(row.input_ids)} tokens, and max_tokens is {limit}")
    if settings.over_length != "shrink_context":
        return too_long
    asked, target = pair
    room = limit - len(row.input_ids) + row.prompt_len  # the last reply stays

    def fits(less: str | Sequence[Message]) -> bool:
        return len(_encode([(less, None)], tokenizer, settings)[0].input_ids) <= room

    less = shrink_context(asked, fits) if isinstance(asked, str) else shrink_messages(asked, fits)
    if less is None:
        return too_long
    shrunk = _encode([(less, target)], tokenizer, settings)[0]
    return replace(shrunk, cut_tokens=len(row.input_ids) - len(shrunk.input_ids))


def encode_columns(
    columns: Mapping[str, list[Any]], tokenizer: Tokenizer | None, settings: EncodeSettings
) -> dict[str, list[Any]]:
    """`datasets.map` over the checked rows of `kyon_pl.data.reading.sources`: one row out for each row in.

    Args:
        columns: a batch with the columns of `ROW_FEATURES`.
        tokenizer: not needed by rows that carry ids.
        settings: how to encode.

    Returns:
        The columns of `ENCODED_FEATURES`.
    """
    rows = [
        EncodedRow([], 0, problem=problem) if problem else _ready_made(ids, seq_len, settings.max_tokens)
        for problem, ids, seq_len in zip(columns["problem"], columns["input_ids"], columns["seq_len"], strict=True)
    ]
    texts = [i for i, row in enumerate(rows) if not row.problem and not row.input_ids]
    if texts:
        assert tokenizer is not None
        pairs = [(columns["messages"][i] or columns["context"][i], columns["target"][i]) for i in texts]
        for i, row in zip(texts, encode_pairs(pairs, tokenizer, settings), strict=True):
            rows[i] = row
    return {
        "input_ids": [row.input_ids for row in rows],
        "seq_len": [row.seq_len for row in rows],
        "masked": [row.masked for row in rows],
        "cut_tokens": [row.cut_tokens for row in rows],
        "problem": [row.problem for row in rows],
        "question": [
            question_hash(context or row.input_ids[: row.seq_len])
            for context, row in zip(columns["context"], rows, strict=True)
        ],
        "other_questions": [
            [question_hash(message["content"]) for message in messages[:-1] if message["role"] == "user"]
            if settings.train_turns == "all"
            else []
            for messages in columns["messages"]
        ],
        "dialogue": columns["dialogue"],
        "odd": [
            oddities(context, target, row.input_ids[row.prompt_len :])
            for context, target, row in zip(columns["context"], columns["target"], rows, strict=True)
        ],
        "row_hash": [
            row_hash(context, target, row.input_ids)
            for context, target, row in zip(columns["context"], columns["target"], rows, strict=True)
        ],
    }


def _ready_made(ids: list[int], seq_len: int, limit: int | None) -> EncodedRow:
    if limit is not None and len(ids) > limit:
        return EncodedRow([], 0, problem=f"too long: {len(ids)} ready-made ids, and max_tokens is {limit}")
    return EncodedRow(ids, seq_len)
