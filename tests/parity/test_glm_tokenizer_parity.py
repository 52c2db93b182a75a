"""`tokenizer.json` of the real ChatGLM2-6B tokenizer gives the published ids and text."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from test_tokenizer import random_text
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kyon_pl.chatglm2.glm import save_glm_tokenizer

PUBLISHED = os.environ.get("KYON_CHATGLM2_DIR")
RUNS = ("a", "aa", "哈", " ", "-", "=", "#", "*", "\u3000", ".", "0", "好", "=-", "ab", "哈啊", " -")

pytestmark = pytest.mark.skipif(
    PUBLISHED is None, reason="KYON_CHATGLM2_DIR is unset: the folder of the real tokenizer.model and config.json"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_glm_tokenizer(Path(PUBLISHED or ""), folder)
    return AutoTokenizer.from_pretrained(folder)


def test_golden_strings(made: PreTrainedTokenizerFast, golden: Path) -> None:
    cases = json.loads((golden / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(cases) >= 300
    for case in cases:
        assert made.encode(case["text"]) == case["ids_with_prefix"], case["text"]
        assert made.encode(case["text"], add_special_tokens=False) == case["ids_no_special"], case["text"]
        assert made.decode(case["ids_with_prefix"], skip_special_tokens=True) == case["decoded"], case["text"]
        assert made.decode(case["ids_no_special"], skip_special_tokens=True) == case["decoded"], case["text"]


def test_random_strings(made: PreTrainedTokenizerFast) -> None:
    rng = random.Random(2023)
    texts = [random_text(rng) for _ in range(20_000)]
    # repeated characters, where the order of merges decides between two ways to build a piece
    texts += ["".join(rng.choice(RUNS) * rng.randint(1, 40) for _ in range(rng.randint(1, 4))) for _ in range(5_000)]
    reference = SentencePieceProcessor(model_file=str(Path(PUBLISHED or "") / "tokenizer.model"))
    expected = reference.encode(texts)
    assert made(texts, add_special_tokens=False)["input_ids"] == expected
    assert made.batch_decode(expected, skip_special_tokens=True) == reference.decode(expected)
