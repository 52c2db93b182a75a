"""The real ChatGLM2-6B tokenizer: the published ids and text."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from limits import HANG_S
from sentencepiece import SentencePieceProcessor

from kyon_pl.chatglm2 import ChatGLMTokenizer

GOLDEN = Path(os.environ.get("KYON_GOLDEN_DIR") or Path(__file__).parents[1] / "golden")
PUBLISHED = os.environ.get("KYON_CHATGLM2_DIR")
SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<unk>", "<s>", "</s>", "<pad>", "<0x0A>")

pytestmark = pytest.mark.skipif(
    PUBLISHED is None, reason="KYON_CHATGLM2_DIR is unset: the folder of the real tokenizer.model and config.json"
)


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(PUBLISHED or "").resolve()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ChatGLMTokenizer:
    return ChatGLMTokenizer.from_pretrained(folder)


def random_text(rng: random.Random) -> str:
    """A few runs of one kind each: scripts, emoji, control characters, spaces, marks without a base, special tokens."""
    ranges = (
        (0x4E00, 0x9FFF),  # Chinese
        (0x3040, 0x30FF),  # kana
        (0xAC00, 0xD7A3),  # Hangul
        (0x0041, 0x007A),
        (0x0400, 0x04FF),  # Cyrillic
        (0x0600, 0x06FF),  # Arabic
        (0x0030, 0x0039),
        (0x0300, 0x036F),  # combining marks
        (0x1F300, 0x1FAFF),  # emoji
        (0x0000, 0x001F),
        (0x3000, 0x303F),
        (0xFF00, 0xFFEF),
        (0xE000, 0x10FFFF),  # anything beyond the surrogates
    )
    words = (
        " ",
        "  ",
        "\n",
        "\t",
        "\u3000",
        "\u2581",
        "\u00a0",
        "\u200d",
        "people",
        "philosophy",
        "你好",
        "###",
        *SPECIAL,
    )
    runs = []
    for _ in range(rng.randint(1, 6)):
        if rng.random() < 0.4:
            runs.append("".join(rng.choice(words) for _ in range(rng.randint(1, 4))))
        else:
            low, high = rng.choice(ranges)
            runs.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8))))
    return "".join(runs)


def test_golden_strings(tokenizer: ChatGLMTokenizer) -> None:
    golden = json.loads((GOLDEN / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(golden) >= 300
    for case in golden:
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids_no_special"], case["text"]
        assert tokenizer.encode(case["text"]) == case["ids_with_prefix"], case["text"]
        assert tokenizer.decode(case["ids_with_prefix"]) == case["decoded"], case["text"]
        assert tokenizer.decode(case["ids_no_special"]) == case["decoded"], case["text"]
    batch = tokenizer([case["text"] for case in golden])["input_ids"]
    assert batch == [case["ids_with_prefix"] for case in golden]


def test_random_strings_are_sentencepiece_s_own(tokenizer: ChatGLMTokenizer, folder: Path) -> None:
    reference = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    rng = random.Random(2023)
    texts = [random_text(rng) for _ in range(20_000)]
    expected = reference.encode(texts)
    assert tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] == expected
    assert tokenizer.batch_decode(expected) == reference.decode(expected)
    assert sum(map(len, expected)) > 200_000  # strings worth the name
    # most texts come back, or both sides of the comparison decode nothing
    assert sum(reference.decode(ids) == text for ids, text in zip(expected, texts, strict=True)) > 15_000


@pytest.mark.parametrize("text", [*SPECIAL, "[gMASK]sop你好", " sop ", "a</s>b", "people of philosophy"])
def test_special_text_stays_text(tokenizer: ChatGLMTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids[:2] == [64790, 64792]
    assert all(3 <= i < 64789 for i in ids[2:])
    assert tokenizer.decode(ids) == text


def test_numbers_are_the_published_ones(tokenizer: ChatGLMTokenizer) -> None:
    specials = tokenizer.convert_tokens_to_ids(["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"])
    assert specials == [64789, 64790, 64791, 64792, 64793]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id) == (0, 0, 2)
    assert tokenizer.bos_token_id is None
    assert len(tokenizer) == tokenizer.vocab_size == 64794


@pytest.mark.parametrize("trust", ["", ", trust_remote_code=True"])
def test_auto_classes_are_native_in_a_fresh_process(folder: Path, tmp_path: Path, trust: str) -> None:
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / name)
    for name in ("configuration", "modeling", "tokenization"):
        (tmp_path / f"{name}_chatglm.py").write_text("raise SystemExit('remote code was run')\n", encoding="utf-8")
    script = (
        "import kyon_pl.chatglm2\n"
        "from transformers import AutoConfig, AutoTokenizer\n"
        f"config = AutoConfig.from_pretrained({str(tmp_path)!r}{trust})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(tmp_path)!r}{trust})\n"
        "print(type(config).__module__, type(tokenizer).__module__, tokenizer.encode('people'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "kyon_pl.chatglm2.configuration kyon_pl.chatglm2.tokenization [64790, 64792, 705]"
