"""Rows of messages: worded as their template says, the right tokens trained, and nothing but old rounds left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from character_tokenizer import CharacterTokenizer, read
from hypothesis import given, settings
from hypothesis import strategies as st

from kyon_pl.chatglm2.tokenization import read_tokenizer
from kyon_pl.data import DialogueDataModule
from kyon_pl.data.batches.collate import DialogueCollator, PlannedCollator, Row
from kyon_pl.data.batches.sampler import MicroBatch
from kyon_pl.data.encoding.encode import EncodedRow, EncodeSettings, encode_pairs
from kyon_pl.data.prompt import Message
from kyon_pl.demo import BASE
from kyon_pl.errors import SettingError

TOKENIZER = CharacterTokenizer()
TALK = ["sys", "q1", "a1", "q2", "a2", "q3", "a3"]


def messages(texts: list[str], system: bool = True) -> list[Message]:
    roles = (["system"] if system else []) + ["user", "assistant"] * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]  # type: ignore[typeddict-item]


def encode(texts: list[str], system: bool = True, **more: Any) -> EncodedRow:
    pair = messages(texts[:-1], system), texts[-1]
    return encode_pairs([pair], TOKENIZER, EncodeSettings(**more))[0]


def as_row(row: EncodedRow) -> Row:
    return {"input_ids": row.input_ids, "seq_len": row.seq_len, "masked": row.masked}


def shown(row: EncodedRow) -> str:
    """The row with what is trained in brackets, as its labels in a batch say, packed and padded alike."""
    other: Row = {"input_ids": [7, 8, 2, 9, 9, 9], "seq_len": 1}
    texts = []
    for tokens_per_batch in (None, len(row.input_ids) + 10):
        planned = MicroBatch((0, 1), 1), [other, as_row(row)]
        batch = PlannedCollator(DialogueCollator(), tokens_per_batch)(planned)
        flat, labels = batch.input_ids.flatten(), batch.labels.flatten()
        assert batch.trained_positions is not None
        assert torch.equal(batch.trained_positions + 1, (labels != -100).nonzero().flatten())
        assert batch.trained_tokens == len(batch.trained_positions)
        assert torch.equal(flat[labels != -100], labels[labels != -100])
        start = 0 if tokens_per_batch is None and len(row.input_ids) > 6 else 6
        own = labels[start : start + len(row.input_ids)] != -100
        text, inside = "", False
        for i, trained in zip(row.input_ids, own.tolist(), strict=True):
            text += ("[" if trained and not inside else "]" if inside and not trained else "") + read([i])
            inside = trained
        texts.append(text + ("]" if inside else ""))
    assert texts[0] == texts[1]
    return texts[0]


ROUNDS = (
    "<>sys\n\n[Round 1]\n\n问：q1\n\n答：{a1}\n\n[Round 2]\n\n问：q2\n\n答：{a2}\n\n[Round 3]\n\n问：q3\n\n答：{a3}"
)
WORDED = {
    ("raw", "last"): "<>sys###q1###a1###q2###a2###q3[a3$]",
    ("raw", "all"): "<>sys###q1[a1$]###q2[a2$]###q3[a3$]",
    ("chatglm2", "last"): ROUNDS.format(a1="a1", a2="a2", a3="[a3$]"),
    ("chatglm2", "all"): ROUNDS.format(a1="[a1$]", a2="[a2$]", a3="[a3$]"),
}


@pytest.mark.parametrize(("template", "train_turns"), WORDED)
def test_each_template_has_its_words_and_each_trained_reply_its_end(template: str, train_turns: str) -> None:
    row = encode(TALK, template=template, train_turns=train_turns)
    # brackets of a template's own are text
    assert shown(row) == WORDED[template, train_turns]
    prompt = encode_pairs(
        [(messages(TALK[:-1]), None)],
        TOKENIZER,
        EncodeSettings(template=template, train_turns=train_turns),  # type: ignore[arg-type]
    )[0]
    assert prompt.input_ids == row.input_ids[: row.prompt_len]
    assert prompt.prompt_len == len(prompt.input_ids)


def test_raw_messages_are_the_row_of_their_context() -> None:
    rows = encode_pairs([(messages(TALK[:-1]), "a3"), ("###".join(TALK[:-1]), "a3")], TOKENIZER, EncodeSettings())
    assert replace(rows[0], context=None) == replace(rows[1], context=None)


def test_chatglm2_is_the_published_chat_template() -> None:
    """And a context of one text is the question of its first round."""
    tokenizer = read_tokenizer(BASE)
    talk = messages(["where is {round}?", "there", "ok {question}\n", "yes", "why"], system=False)
    expected = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    first = tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True, return_dict=False)
    rows = encode_pairs(
        [(talk, "because"), (talk[0]["content"], "because")], tokenizer, EncodeSettings(template="chatglm2")
    )
    assert rows[0].input_ids[: rows[0].seq_len] == expected
    assert rows[1].input_ids[: rows[1].seq_len] == first
    assert rows[0].input_ids[rows[0].seq_len :] == rows[1].input_ids[rows[1].seq_len :]


# max_tokens and what is left
SHRUNK = [
    (29, "<>sys###q1[a1$]###q2[a2$]###q3[a3$]"),
    (28, "<>sys###q2[a2$]###q3[a3$]"),
    (21, "<>sys###q2[a2$]###q3[a3$]"),
    (20, "<>sys###q3[a3$]"),
    (13, "<>sys###q3[a3$]"),
    (12, ""),
]


@pytest.mark.parametrize(("max_tokens", "left"), SHRUNK)
def test_whole_rounds_go_the_oldest_first(max_tokens: int, left: str) -> None:
    row = encode(TALK, train_turns="all", max_tokens=max_tokens)
    assert (shown(row) if row.input_ids else "") == left
    assert bool(row.problem) == (not left)
    assert row.problem or row.cut_tokens == 29 - len(row.input_ids)
    dropped = encode(TALK, train_turns="all", max_tokens=max_tokens, over_length="drop")
    assert bool(dropped.problem) == (max_tokens < 29)


GREETED = {
    ("raw", 99): "<>sys###hi###q1[a1$]###q2[a2$]",
    ("raw", 26): "<>sys###hi###q1[a1$]###q2[a2$]",
    ("raw", 25): "<>sys###q1[a1$]###q2[a2$]",
    ("raw", 20): "<>sys###q2[a2$]",
    ("chatglm2", 99): "<>sys\n\nhi\n\n[Round 1]\n\n问：q1\n\n答：{a1}\n\n[Round 2]\n\n问：q2\n\n答：{a2}",
}


@pytest.mark.parametrize(("template", "max_tokens"), GREETED)
def test_a_greeting_is_context_is_never_trained_and_goes_first(template: str, max_tokens: int) -> None:
    talk = messages(["sys", "hi", "q1", "a1", "q2"])
    for number, role in enumerate(("system", "assistant", "user", "assistant", "user")):
        talk[number]["role"] = role  # type: ignore[typeddict-item]
    wording = EncodeSettings(template=template, train_turns="all", max_tokens=max_tokens)
    row = encode_pairs([(talk, "a2")], TOKENIZER, wording)[0]
    expected = GREETED[template, max_tokens].format(a1="[a1$]", a2="[a2$]")
    assert shown(row) == expected
    without_system = encode_pairs([(talk[1:], "a2")], TOKENIZER, replace(wording, max_tokens=None))[0]
    assert shown(without_system) == GREETED[template, 99].format(a1="[a1$]", a2="[a2$]").replace("sys###", "").replace(
        "sys\n\n", ""
    )


@settings(deadline=None)
@given(
    texts=st.lists(st.text("ab#答\n ", min_size=1, max_size=8), min_size=2, max_size=9),
    system=st.booleans(),
    template=st.sampled_from(["raw", "chatglm2"]),
    train_turns=st.sampled_from(["last", "all"]),
    append_eos=st.booleans(),
    max_tokens=st.integers(4, 120),
)
def test_what_is_trained_is_the_newest_replies_to_the_letter(
    texts: list[str], system: bool, template: str, train_turns: str, append_eos: bool, max_tokens: int
) -> None:
    if len(texts) % 2 == (not system):  # a reply must be the last
        texts = [*texts, "reply"]
    row = encode(
        texts, system, template=template, train_turns=train_turns, append_eos=append_eos, max_tokens=max_tokens
    )
    if row.problem:
        assert row.input_ids == []
        shortest = encode(texts[:system] + texts[-2:], system, template=template, append_eos=append_eos)
        assert len(shortest.input_ids) > max_tokens
        return
    assert len(row.input_ids) <= max_tokens
    bounds = [row.seq_len, *row.masked, len(row.input_ids)]
    trained = [read(row.input_ids[start:end]) for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
    replies = [text + ("$" if append_eos else "") for text in texts[system + 1 :: 2]]
    assert trained == replies[-len(trained) :]
    assert train_turns == "all" or len(trained) == 1
    prompt = read(row.input_ids[: row.prompt_len])
    assert prompt.startswith("<>" + (texts[0] if system else ""))
    assert prompt.removesuffix("\n\n答：").endswith(texts[-2])
    assert row.cut_tokens or train_turns == "last" or len(trained) == len(replies)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SettingError, match=r"data\.train_turns: there is no 'first'\. Choose one of: last, all"):
        EncodeSettings(train_turns="first")  # type: ignore[arg-type]


def test_a_file_of_messages_is_trained_validated_and_replied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through file, cache, split, plan and batch; the counts are those of the batches."""
    monkeypatch.setattr("kyon_pl.data.dialogue_data.load_tokenizer", lambda *_: TOKENIZER)
    talks = [messages(["sys", f"q{i}", f"a{i}", f"r{i}", f"b{i}"]) for i in range(40)]
    lines = [{"messages": talk} for talk in talks] + [{"context": "sys###q###a###why?", "target": "so"}] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "asked.jsonl").write_text(json.dumps({"messages": talks[0][:-1]}) + "\n" + json.dumps(lines[1]) + "\n")

    def fitted(**more: Any) -> DialogueDataModule:
        data = DialogueDataModule(
            str(tmp_path / "rows.jsonl"),
            predict_source=str(tmp_path / "asked.jsonl"),
            max_tokens=40,
            tokens_per_batch=100,
            workers=0,
            processes=1,
            cache_dir=str(tmp_path / "cache"),
            **more,
        )
        data.setup()
        return data

    for train_turns, trained in (("last", 1), ("all", 2)):
        data = fitted(train_turns=train_turns)
        batches = [*data.train_dataloader(), *data.val_dataloader()]
        texts = [read(labels[labels != -100]) for batch in batches for labels in batch.labels]
        replies = [f"{text}{i}$" for text in ("ab" if trained == 2 else "b") for i in range(40)] + ["so$"] * 2
        assert sorted("".join(texts).replace("$", "$ ").split()) == sorted(replies)
        assert sum(batch.trained_tokens for batch in batches) == sum(map(len, replies))
        trained_tokens = sum(int(data.rows[use].trained_tokens("target").sum()) for use in ("train", "validation"))
        assert trained_tokens == sum(map(len, replies))
        (prompts,) = data.predict_dataloader()
        end = "$" if trained == 2 else ""
        joint = "" if trained == 2 else "###"
        assert [read(ids) for ids in prompts.input_ids] == [f"<>sys###q{i}{joint}a{i}{end}###r{i}" for i in range(2)]
        assert prompts.prompts == [f"sys###q{i}###a{i}###r{i}" for i in range(2)]
        assert prompts.references == ["", "b1"]
        assert prompts.memories == [(f"q{i}", f"a{i}") for i in range(2)]
    with pytest.raises(SettingError, match=r"data\.train_turns: all, and data\.label_boundary seed is the original's"):
        fitted(train_turns="all", label_boundary="seed")
