"""The embedded demo: its script reproduces the committed files, and its rows are consistent."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from statistics import mean

import pytest
import torch
from packaging.version import Version

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import ASSETS, corpus, make_assets
from kyon_pl.demo.grammar import CHARACTERS, PLAIN_SPEAKERS
from kyon_pl.demo.world import facts

BASE = ASSETS / "base"
SPEAKER = {speaker.name: speaker for speaker in CHARACTERS}


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(text) for text in (ASSETS / name).read_text(encoding="utf-8").splitlines()]


TRAIN, VALIDATION = read("train.jsonl"), read("validation.jsonl")


def question(row: dict[str, str]) -> str:
    return row["context"].split("###")[-1]


def test_the_script_reproduces_the_committed_rows(tmp_path: Path) -> None:
    corpus.write_rows(tmp_path)
    for name in ("train.jsonl", "validation.jsonl", "bad_rows.jsonl"):
        assert (tmp_path / name).read_bytes() == (ASSETS / name).read_bytes()


@pytest.mark.skipif(Version(version("sentencepiece")) < Version("0.2.3"), reason="its trainer gives another model")
def test_the_script_reproduces_the_committed_tokenizer(tmp_path: Path) -> None:
    make_assets.write_tokenizer(tmp_path)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (BASE / name).read_bytes()


def test_rows_have_the_format_of_role_data() -> None:
    assert len(TRAIN) >= 600
    tokenizer = ChatGLMTokenizer.from_pretrained(BASE)
    context_tokens = list(map(len, tokenizer([row["context"] for row in TRAIN])["input_ids"]))
    target_tokens = list(map(len, tokenizer([row["target"] for row in TRAIN], add_special_tokens=False)["input_ids"]))
    assert 100 <= mean(context_tokens) <= 160
    assert 10 <= min(target_tokens) <= max(target_tokens) <= 30
    assert len({json.dumps(row) for row in TRAIN}) == len(TRAIN)
    for row in TRAIN + VALIDATION:
        system, *_, asked = row["context"].split("###")
        assert system in {speaker.system_prompt for speaker in CHARACTERS}
        assert re.fullmatch(r"[^:「]+:「[^」]+」", asked)


@pytest.mark.parametrize("rows", [TRAIN, VALIDATION], ids=["train", "validation"])
def test_replies_match_their_templates_facts_and_contexts(rows: list[dict[str, str]]) -> None:
    for row in rows:
        speaker = SPEAKER[row["target"].split(":")[0]]
        parsed = speaker.parse(row["target"])
        assert parsed is not None
        assert row["context"].startswith(speaker.system_prompt)
        truth = {(fact.intent, fact.thing): fact.value for fact in facts(speaker.language)}
        assert truth[parsed["intent"], parsed["thing"]] == parsed["value"]
        assert question(row).startswith(parsed["asker"] + ":")
        memories = row["context"].split("###")[1:-1]
        assert any(parsed["thing"] in text and parsed["value"] in text for text in memories)


def test_replies_of_other_speakers_are_not_accepted() -> None:
    for speaker in CHARACTERS:
        for other in (*CHARACTERS, *PLAIN_SPEAKERS):
            if other is not speaker and other.language == speaker.language:
                reply = other.reply(facts(speaker.language)[0], "小满")
                assert not speaker.accepts(reply.replace(other.name, speaker.name))
    good = TRAIN[0]["target"]
    speaker = SPEAKER[good.split(":")[0]]
    assert speaker.accepts(good)
    assert not speaker.accepts(good[:-1])
    assert not speaker.accepts(good + good)


def test_validation_asks_for_held_out_facts() -> None:
    asked = {question(row).split("「")[1] for row in TRAIN}
    assert not asked & {question(row).split("「")[1] for row in VALIDATION}
    trained = {row["target"] for row in TRAIN}
    shown = "\n".join(row["context"] for row in TRAIN)
    for row in VALIDATION:
        assert row["target"] not in trained
        assert row["target"] not in shown
    assert Counter(row["target"].split(":")[0] for row in VALIDATION).keys() == SPEAKER.keys()


def test_bad_lines_match_their_names() -> None:
    lines = dict(corpus.BAD_LINES)
    assert len(lines) == len(corpus.BAD_LINES)
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines.pop("broken JSON"))
    rows = {kind: json.loads(text) for kind, text in lines.items()}
    assert isinstance(rows.pop("not an object"), list)
    assert rows["missing context"].keys() == {"target"}
    assert rows["null target"]["target"] is None
    assert rows["nothing said by name"]["target"] == "绵卷:「」"
    assert len(rows["too long target"]["target"]) > 2048


def test_the_base_is_tiny_and_models_plain_speech() -> None:
    files = {path.name for path in BASE.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"} <= files
    assert (BASE / "model.safetensors").stat().st_size < 10_000_000
    model = ChatGLM2ForCausalLM.from_pretrained(BASE, dtype="auto")
    assert model.dtype == torch.float16
    tokenizer = ChatGLMTokenizer.from_pretrained(BASE)
    held_out = make_assets.batches(tokenizer, seed=7)
    assert make_assets.perplexity(model.float(), held_out, count=2) < 8


def test_training_the_base_is_deterministic() -> None:
    tokenizer = ChatGLMTokenizer.from_pretrained(BASE)
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model = ChatGLM2ForCausalLM(ChatGLM2Config(**{**make_assets.SHAPE, "num_layers": 1, "hidden_size": 32}))
        make_assets.train(model, make_assets.batches(tokenizer, 0), steps=3)
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert torch.equal(*weights)
