"""`tokenizer.json` equals the demo's `tokenizer.model` in ids and text; tests/parity compares the real one."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kyon_pl.chatglm2 import ChatGLMTokenizer
from kyon_pl.chatglm2.glm import check_equal, glm_tokenizer, save_glm_tokenizer
from kyon_pl.demo import ASSETS, BASE
from kyon_pl.errors import CheckpointError
from kyon_pl.files import explained
from kyon_pl.vocabulary.pieces import SPECIAL_TOKENS

MESSAGES = [
    {"role": "user", "content": "你好 [gMASK]sop"},
    {"role": "assistant", "content": "</s>"},
    {"role": "user", "content": "?"},
]


@pytest.fixture(scope="module")
def published() -> ChatGLMTokenizer:
    return ChatGLMTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_glm_tokenizer(BASE, folder)
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def texts() -> list[str]:
    """The demo's text cut at random, with repeated characters, other scripts, bytes and spelled special tokens."""
    rng = random.Random(0)
    source = (ASSETS / "train.jsonl").read_text(encoding="utf-8")
    odd = [" ", "  ", "\n", "▁", "😀", "é", "한", "\u0301", "<0x0A>", "<s>", "</s>", "<unk>", *SPECIAL_TOKENS]
    cuts = []
    for _ in range(3000):
        start = rng.randrange(len(source))
        cut = source[start : start + rng.randrange(40)]
        cuts.append(cut + rng.choice(odd) * rng.randrange(4) + rng.choice(cut or "a") * rng.randrange(30))
    return cuts


def test_ids_and_text_are_the_same(published: ChatGLMTokenizer, made: PreTrainedTokenizerFast) -> None:
    expected = published(texts())["input_ids"]
    assert made(texts())["input_ids"] == expected
    assert made(texts(), add_special_tokens=False)["input_ids"] == [ids[2:] for ids in expected]
    assert made.batch_decode(expected, skip_special_tokens=True) == published.batch_decode(expected)
    pair = published("a", "b")["input_ids"]
    assert made("a", "b")["input_ids"] == pair
    assert max(map(len, expected)) > 30


def test_padding_and_numbers_are_the_same(published: ChatGLMTokenizer, made: PreTrainedTokenizerFast) -> None:
    batch = ["a", "people of philosophy"]
    assert dict(made(batch, padding=True)) == dict(published(batch, padding=True))
    for key in ("pad_token_id", "unk_token_id", "eos_token_id", "bos_token_id"):
        assert getattr(made, key) == getattr(published, key)
    assert len(made) == len(published)


def test_chat_template_gives_the_same_text(published: ChatGLMTokenizer, made: PreTrainedTokenizerFast) -> None:
    text = made.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert text == published.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert made.encode(text) == published.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)


def test_special_tokens_are_parsed_without_the_setting(folder: Path) -> None:
    """Negative control for the texts above that spell special tokens."""
    loose = AutoTokenizer.from_pretrained(folder, split_special_tokens=False)
    assert loose.convert_tokens_to_ids("sop") in loose.encode("philosophy", add_special_tokens=False)


def test_another_order_of_merges_is_refused(published: ChatGLMTokenizer) -> None:
    made = glm_tokenizer(published)
    model = json.loads(made.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in reversed(model["merges"])]
    made.backend_tokenizer.model = BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", byte_fallback=True)
    with pytest.raises(CheckpointError, match=r"its encoding of .* differs"):
        check_equal(made, published, where="tokenizer.json")


def test_a_file_that_makes_tokenizers_panic_is_named(folder: Path, tmp_path: Path) -> None:
    """A panic of Rust code is no Exception in Python."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["continuing_subword_prefix"] = "os.getcwd"
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    with (
        pytest.raises(CheckpointError, match=r"tokenizer\.json: tokenizers cannot read it"),
        explained("tokenizers", file),
    ):
        Tokenizer.from_file(str(file))
