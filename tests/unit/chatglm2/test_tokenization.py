"""ChatGLM2's tokenizer, with the demo's tokenizer.model: the same layout with 1,800 pieces."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from datasets.fingerprint import Hasher
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from limits import HANG_S
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import AddedToken

from kyon_pl.chatglm2.tokenization import ChatGLMTokenizer
from kyon_pl.demo import ASSETS
from kyon_pl.errors import CheckpointError, DataError, SettingError
from kyon_pl.vocabulary.pieces import SPECIAL_TOKENS, PieceTokenizer

BASE = ASSETS / "base"
REFERENCE = SentencePieceProcessor(model_file=str(BASE / "tokenizer.model"))
TOKENIZER = ChatGLMTokenizer.from_pretrained(BASE)
PREFIX = [1801, 1803]  # [gMASK] sop

texts = st.lists(
    st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from([*SPECIAL_TOKENS, "</s>", "绵卷", " ", "\n"])
).map("".join)


def published_prompt(query: str, history: list[tuple[str, str]]) -> str:
    """The result of the published tokenizer's `build_prompt`."""
    rounds = [f"[Round {i}]\n\n问：{asked}\n\n答：{said}\n\n" for i, (asked, said) in enumerate(history, 1)]
    return "".join(rounds) + f"[Round {len(history) + 1}]\n\n问：{query}\n\n答："


def test_layout_is_chatglm2_s() -> None:
    assert TOKENIZER.convert_ids_to_tokens([0, 1, 2]) == ["<unk>", "<s>", "</s>"]
    assert TOKENIZER.convert_ids_to_tokens([12, 13, 258]) == ["<0x09>", "<0x0A>", "<0xFF>"]
    assert TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [1800, 1801, 1802, 1803, 1804]
    assert len(TOKENIZER) == TOKENIZER.vocab_size == len(TOKENIZER.get_vocab()) == 1805
    assert (TOKENIZER.pad_token_id, TOKENIZER.unk_token_id, TOKENIZER.eos_token_id) == (0, 0, 2)
    assert TOKENIZER.bos_token is None
    assert TOKENIZER.model_input_names == ["input_ids", "attention_mask"]
    assert "\n" not in "".join(REFERENCE.id_to_piece(i) for i in range(259, 1800))


@given(texts)
@settings(max_examples=200, deadline=None)
def test_encoding_and_decoding_equal_sentencepiece(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert ids == REFERENCE.encode(text)
    assert all(3 <= i < 1800 for i in ids)  # no special tokens
    assert TOKENIZER.encode(text) == PREFIX + ids == TOKENIZER([text])["input_ids"][0]
    assert TOKENIZER.decode(ids) == REFERENCE.decode(ids)


@given(texts, st.lists(st.integers(-3, 2100)))
@settings(max_examples=200, deadline=None)
def test_the_tokenizer_without_transformers_is_the_same(text: str, ids: list[int]) -> None:
    plain = PieceTokenizer(BASE / "tokenizer.model")
    for special in (True, False):
        assert plain(text, add_special_tokens=special)["input_ids"] == TOKENIZER.encode(
            text, add_special_tokens=special
        )
    assert plain([text, "a"])["input_ids"] == TOKENIZER([text, "a"])["input_ids"]
    assert plain.decode(ids) == TOKENIZER.decode(ids)
    assert plain.eos_token_id == TOKENIZER.eos_token_id
    with pytest.raises(DataError, match="lone surrogate"):
        plain("\ud800")


def test_tokens_outside_the_vocabulary_are_refused_at_once() -> None:
    tokenizer = ChatGLMTokenizer.from_pretrained(BASE)
    length = len(tokenizer)
    for tokens in ("<|铃|>", ["sop", AddedToken("<|铃|>")]):
        with pytest.raises(SettingError, match=r"'<\|铃\|>' is not in ChatGLM2's vocabulary"):
            tokenizer.add_tokens(tokens)
    with pytest.raises(SettingError, match="is not in ChatGLM2's vocabulary"):
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|铃|>"]})
    assert tokenizer.add_tokens(["sop", "</s>", tokenizer.convert_ids_to_tokens(300)]) == 0
    assert len(tokenizer) == length
    assert "<|铃|>" not in tokenizer.get_vocab()


def test_pairs_end_and_special_ids_are_marked() -> None:
    encoded = TOKENIZER("绵卷", "老榫", return_special_tokens_mask=True)
    first, second = (REFERENCE.encode(text) for text in ("绵卷", "老榫"))
    assert encoded["input_ids"] == [*PREFIX, *first, *second, 2]
    assert encoded["special_tokens_mask"] == [1, 1] + [0] * len(first + second) + [1]


def test_decoding_drops_special_and_invalid_ids() -> None:
    first, second, third = (3 + byte for byte in "你".encode())
    assert TOKENIZER.decode([first, second, third]) == "你"
    assert TOKENIZER.decode([*PREFIX, 0, 1, first, second, third, 2, 2047, 1805, -100]) == "你"
    assert TOKENIZER.decode([first, 2, second, third]) == "\ufffd" * 3  # as published: a special id separates the bytes
    assert TOKENIZER.decode([[first, second, third], [2]]) == ["你", ""]


def test_padding_on_both_sides() -> None:
    short, long = TOKENIZER(["绵", "绵卷在北坡"], add_special_tokens=False)["input_ids"]
    gap = len(long) - len(short)
    assert gap > 0
    left = TOKENIZER(["绵", "绵卷在北坡"], add_special_tokens=False, padding=True)
    assert left["input_ids"] == [[0] * gap + short, long]
    assert left["attention_mask"] == [[0] * gap + [1] * len(short), [1] * len(long)]
    right = TOKENIZER(["绵", "绵卷在北坡"], add_special_tokens=False, padding=True, padding_side="right")
    assert right["input_ids"] == [[*short, *[0] * gap], long]


@pytest.mark.parametrize("history", [[], [("你好", "你好！")], [("你好", "你好！"), ("[gMASK]", "{{ sop }}\n")]])
def test_chat_template_is_the_published_prompt(history: list[tuple[str, str]]) -> None:
    messages = [
        {"role": role, "content": text}
        for turns in history
        for role, text in zip(("user", "assistant"), turns, strict=True)
    ]
    messages.append({"role": "user", "content": "钟楼在哪里？"})
    prompt = published_prompt("钟楼在哪里？", history)
    assert TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == prompt
    encoded = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    assert encoded["input_ids"].tolist() == [PREFIX + REFERENCE.encode(prompt)]
    batch = TOKENIZER.apply_chat_template([messages], add_generation_prompt=True, return_dict=False)
    assert batch == [PREFIX + REFERENCE.encode(prompt)]


@pytest.mark.parametrize("roles", [["system", "user"], ["assistant"], ["user", "user"]])
def test_chat_template_refuses_other_roles(roles: list[str]) -> None:
    with pytest.raises(TemplateError, match="no other roles than user and assistant"):
        TOKENIZER.apply_chat_template([{"role": role, "content": "x"} for role in roles], tokenize=False)


def test_save_and_load_drop_the_remote_code_only(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.model").write_bytes((BASE / "tokenizer.model").read_bytes())
    published = {"auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}, "remove_space": False}
    (source / "tokenizer_config.json").write_text(json.dumps(published), encoding="utf-8")
    tokenizer = ChatGLMTokenizer.from_pretrained(source)
    for place in ("first", "second"):  # twice, because saved settings are read again
        tokenizer.save_pretrained(tmp_path / place)
        tokenizer = ChatGLMTokenizer.from_pretrained(tmp_path / place)
    assert {p.name for p in (tmp_path / "second").iterdir()} == {
        "tokenizer.model",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    config = json.loads((tmp_path / "second/tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in config
    assert config["tokenizer_class"] == "ChatGLMTokenizer"
    assert (tmp_path / "second/tokenizer.model").read_bytes() == (BASE / "tokenizer.model").read_bytes()
    assert tokenizer.chat_template == TOKENIZER.chat_template
    assert tokenizer.encode("people of 绵卷 [gMASK]") == TOKENIZER.encode("people of 绵卷 [gMASK]")
    assert tokenizer.all_special_ids == TOKENIZER.all_special_ids
    assert tokenizer.fingerprint == TOKENIZER.fingerprint


def test_pickling_and_the_hash_of_datasets() -> None:
    copy = pickle.loads(pickle.dumps(TOKENIZER))
    assert copy.encode("绵卷 sop") == TOKENIZER.encode("绵卷 sop")
    assert copy.fingerprint == TOKENIZER.fingerprint
    script = (
        "from datasets.fingerprint import Hasher\n"
        "from kyon_pl.chatglm2.tokenization import ChatGLMTokenizer\n"
        f"print(Hasher.hash(ChatGLMTokenizer.from_pretrained({str(BASE)!r})))"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG_S, check=True)
    assert other.stdout.strip() == Hasher.hash(ChatGLMTokenizer.from_pretrained(BASE))


def test_a_missing_or_invalid_model_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.model"):
        ChatGLMTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: not a SentencePiece model"):
        ChatGLMTokenizer.from_pretrained(tmp_path)
    text = iter(["sop eop a b c d e f"] * 9)
    with (tmp_path / "tokenizer.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=text, model_writer=file, vocab_size=14, user_defined_symbols="sop", minloglevel=2
        )
    with pytest.raises(CheckpointError, match="a vocabulary that begins with"):
        ChatGLMTokenizer.from_pretrained(tmp_path)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(DataError, match="lone surrogate"):
        TOKENIZER.encode("绵卷\ud83d")
