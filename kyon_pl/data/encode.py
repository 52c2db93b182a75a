"""Rows of text to rows of ids: `[gMASK] sop` context, target, end of sequence; and what becomes of rows too long."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from kyon_pl.data.prompt import Context, Segment, render
from kyon_pl.data.quality import oddities, row_hash
from kyon_pl.errors import DataError, SettingError

OverLength = Literal["shrink_context", "drop", "error"]


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
        append_eos: end each target with the end-of-sequence id, so that the model learns to stop.
        template: how a context becomes a prompt, a name in `kyon_pl.data.prompt.TEMPLATES`.

    Raises:
        SettingError: a value that none of these can have.
    """

    max_tokens: int | None = 2048
    over_length: OverLength = "shrink_context"
    append_eos: bool = True
    template: str = "raw"

    def __post_init__(self) -> None:
        render("", template=self.template)
        if self.max_tokens is not None and self.max_tokens < 4:
            fix = "Set 4 or more, or null for no limit."
            raise SettingError("data.max_tokens", f"{self.max_tokens} has no room for a row", fix)
        if self.over_length not in get_args(OverLength):
            found = f"there is no {self.over_length!r}"
            raise SettingError("data.over_length", found, f"Choose one of: {', '.join(get_args(OverLength))}.")


@dataclass(frozen=True)
class EncodedRow:
    """A row as the model sees it.

    Attributes:
        input_ids: context, then target and end of sequence; empty if there is a problem.
        seq_len: number of context ids, prefix included: the index of the first id of the target.
        cut_tokens: tokens of the context that were left out to make the row fit.
        problem: why the row cannot be used: the kind, then `: ` and details; empty if it can.
    """

    input_ids: list[int]
    seq_len: int
    cut_tokens: int = 0
    problem: str = ""


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


def encode_pairs(
    pairs: list[tuple[str, str | None]], tokenizer: Tokenizer, settings: EncodeSettings
) -> list[EncodedRow]:
    """Encode rows of (context, target) together; a target of None makes a prompt without a reply."""
    rows = _encode_segments([render(*pair, template=settings.template) for pair in pairs], tokenizer, settings)
    limit = settings.max_tokens
    return [
        row if limit is None or len(row.input_ids) <= limit else _fit(row, context, tokenizer, settings, limit)
        for row, (context, _) in zip(rows, pairs, strict=True)
    ]


def _encode_segments(rows: list[list[Segment]], tokenizer: Tokenizer, settings: EncodeSettings) -> list[EncodedRow]:
    """The first segment of a row takes the prefix; ids of trained segments all come after `seq_len`."""
    first = _ids([row[0].text for row in rows], tokenizer, prefix=True)
    rest = iter(_ids([segment.text for row in rows for segment in row[1:]], tokenizer, prefix=False))
    encoded = []
    for segments, ids in zip(rows, first, strict=True):
        seq_len = len(ids)
        for segment in segments[1:]:
            ids = ids + next(rest)
            seq_len = seq_len if segment.trained else len(ids)
        if segments[-1].trained and settings.append_eos:
            ids.append(tokenizer.eos_token_id)
        encoded.append(EncodedRow(ids, seq_len))
    return encoded


def _ids(texts: list[str], tokenizer: Tokenizer, *, prefix: bool) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=prefix, return_attention_mask=False)["input_ids"]
    return ids


def _fit(row: EncodedRow, context: str, tokenizer: Tokenizer, settings: EncodeSettings, limit: int) -> EncodedRow:
    """A row over the limit, shrunk if the settings say so and it can be."""
    too_long = EncodedRow([], 0, problem=f"too long: {len(row.input_ids)} tokens, and max_tokens is {limit}")
    if settings.over_length != "shrink_context":
        return too_long
    target = row.input_ids[row.seq_len :]

    def encode(text: str) -> list[int]:
        prompt = render(text, template=settings.template)
        return _ids([prompt[0].text], tokenizer, prefix=True)[0]

    kept = shrink_context(context, limit - len(target), encode)
    if kept is None:
        return too_long
    return EncodedRow(kept + target, len(kept), cut_tokens=row.seq_len - len(kept))


def shrink_context(context: str, room: int, encode: Callable[[str], list[int]]) -> list[int] | None:
    """The ids of a context with as much of its oldest text left out as it takes to fit.

    System prompt (the first `###` segment) and question (the last) always stay whole. Of the segments between, whole
    ones go, from the front: first the memories, then the turns of the dialogue from the oldest on, because the turns
    right before the question are what it answers. Where not even the last fits whole, the end of its text stays.

    Args:
        context: segments joined by `###`.
        room: tokens that the result may have.
        encode: the ids of a context, prefix included.

    Returns:
        At most `room` ids; None if system prompt and question alone have more.
    """
    parts = Context.parse(context)

    def fits(middle: tuple[str, ...]) -> bool:
        return len(encode(parts.join(middle))) <= room

    # a context without `###` is its own system prompt and question, so nothing in it may go
    if not parts.middle or not fits(()):
        return None
    dropped = bisect_left(range(len(parts.middle)), True, key=lambda count: fits(parts.middle[count:]))
    kept = parts.middle[dropped:]
    if not kept:
        last = parts.middle[-1]
        start = bisect_left(range(len(last)), True, key=lambda place: fits((last[place:],)))
        kept = (last[start:],) if start < len(last) else ()
    return encode(parts.join(kept))


def encode_columns(
    columns: Mapping[str, list[Any]], tokenizer: Tokenizer | None, settings: EncodeSettings
) -> dict[str, list[Any]]:
    """`datasets.map` over the checked rows of `kyon_pl.data.sources`: one row out for each row in, bad ones included.

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
        pairs = [(columns["context"][i], columns["target"][i]) for i in texts]
        for i, row in zip(texts, encode_pairs(pairs, tokenizer, settings), strict=True):
            rows[i] = row
    return {
        "input_ids": [row.input_ids for row in rows],
        "seq_len": [row.seq_len for row in rows],
        "cut_tokens": [row.cut_tokens for row in rows],
        "problem": [row.problem for row in rows],
        "question": [
            question_hash(context or row.input_ids[: row.seq_len])
            for context, row in zip(columns["context"], rows, strict=True)
        ],
        "odd": [
            oddities(context, target, row.input_ids[row.seq_len :])
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


def question_hash(context: str | list[int]) -> int:
    """What rows with the same question have in common, as a signed 64-bit number; of ids, the whole context counts."""
    question = Context.parse(context).question.strip() if isinstance(context, str) else repr(context)
    return int.from_bytes(hashlib.blake2b(question.encode(), digest_size=8).digest(), "big", signed=True)
