"""A merged model in GGUF, read by a real llama.cpp: ids, log-probabilities, replies and chat templates are ours."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters_made import base, live_model, written_adapter
from gguf import GGUFReader
from gguf_exports import encoded_by, exported, log_probabilities, random_text, with_prompt_format
from llama_cpp import LlamaServer
from peft import LoraConfig, PeftModel
from published_layout import tiny_config

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.chatglm2.generation import generate_replies
from kyon_pl.data.encoding.encode import EncodeSettings, encode_pairs
from kyon_pl.data.prompt import TEMPLATES
from kyon_pl.demo import ASSETS, BASE
from kyon_pl.errors import CheckpointError, MachineError, SettingError
from kyon_pl.export.gguf import file as gguf_file
from kyon_pl.export.gguf import vocabulary as gguf_vocabulary
from kyon_pl.export.merge import merge
from kyon_pl.lora import attach_lora, write_adapter
from kyon_pl.lora.adapter import load_adapter
from kyon_pl.runs.adapters import find_adapter

GOLDEN = Path(__file__).parents[2] / "golden/tokenizer.json"
PUBLISHED = os.environ.get("KYON_CHATGLM2_DIR")
LOGIT_TOLERANCE = 1e-4
CLOSE_CALL = {"f32": 0.0, "f16": 0.0, "q8_0": 0.2}
"""How far apart the logits of the likeliest two tokens may be where a reply may differ; 0: none differs."""

NEW_TOKENS = 48
KIND = "fused"
TOKENIZER = ChatGLMTokenizer.from_pretrained(BASE)


def demo_rows(name: str = "validation") -> list[dict[str, str]]:
    return [json.loads(line) for line in (ASSETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_adapter(KIND, tmp_path_factory.mktemp("adapter") / KIND)


@pytest.fixture(scope="module")
def live() -> PeftModel:
    return live_model(KIND)


@pytest.fixture(scope="module")
def folders(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The export of the adapter in a quantization."""
    place = tmp_path_factory.mktemp("exports")

    def folder(quantization: str) -> Path:
        output = place / quantization
        if not output.exists():
            merge(output, str(adapter), format="gguf", quantization=quantization)  # type: ignore[arg-type]
        return output

    return folder


@pytest.fixture(scope="module")
def f32(folders: Callable[[str], Path]) -> Path:
    return exported(folders("f32"))


@pytest.fixture(scope="module")
def server(f32: Path) -> Iterator[LlamaServer]:
    with LlamaServer(f32) as server:
        yield server


def texts_of_all_kinds() -> list[str]:
    rng = random.Random(1)
    golden = [entry["text"] for entry in json.loads(GOLDEN.read_text(encoding="utf-8"))]
    rows = [row[column] for name in ("train", "validation") for row in demo_rows(name) for column in row]
    return [*golden, *rows, *(random_text(rng) for _ in range(20_000))]


def different(server: LlamaServer, tokenizer: ChatGLMTokenizer, texts: Sequence[str]) -> list[str]:
    """The texts whose ids are not ours."""
    ours = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [text for text, ids, found in zip(texts, ours, encoded_by(server, texts), strict=True) if found != ids]


def test_ids_are_ours(server: LlamaServer) -> None:
    texts = texts_of_all_kinds()
    assert len(texts) > 21_000
    assert different(server, TOKENIZER, texts) == []
    whole = server.ask("/tokenize", content="[gMASK][sop]你好 people", add_special=True)["tokens"]
    assert whole == TOKENIZER.encode("你好 people")


def test_without_the_changed_spelling_words_become_special(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the ids; and the export refuses such a vocabulary by itself."""
    monkeypatch.setattr(gguf_vocabulary, "SPELLINGS", {})
    with pytest.raises(CheckpointError, match="would take the text 'sop' for a special token"):
        merge(tmp_path / "refused", str(adapter), format="gguf")
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(gguf_vocabulary, "check_vocabulary", lambda vocabulary, file: None)
    merge(tmp_path / "taken", str(adapter), format="gguf", quantization="q8_0")
    with LlamaServer(exported(tmp_path / "taken")) as server:
        assert different(server, TOKENIZER, ["philosophy", "我", "people"]) == ["philosophy", "people"]


def test_a_prompt_begins_with_the_prefix_and_nothing_else(f32: Path, tmp_path: Path) -> None:
    """Negative control: where `add_bos_token` is set, another token is put in front."""
    file = Path(shutil.copyfile(f32, tmp_path / "bos.gguf"))
    reader = GGUFReader(file, "r+")
    field = reader.fields["tokenizer.ggml.add_bos_token"]
    field.parts[field.data[0]][:] = True
    reader.fields["tokenizer.ggml.bos_token_id"].parts[-1][:] = 1  # <s>
    reader.data.flush()
    with LlamaServer(file) as server:
        found = server.ask("/tokenize", content="[gMASK][sop]你好", add_special=True)["tokens"]
    assert found == [1, *TOKENIZER.encode("你好")]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return TOKENIZER([row["context"] for row in demo_rows()[:50]])["input_ids"]


def largest_difference(server: LlamaServer, model: Any, prompts: Sequence[list[int]]) -> float:
    """Of all log-probabilities of the token after each prompt."""
    differences = []
    for prompt in prompts:
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1).numpy()
        differences.append(np.abs(log_probabilities(server, prompt, len(expected)) - expected).max())
    return float(max(differences))


def test_log_probabilities_are_ours(server: LlamaServer, live: PeftModel, prompts: list[list[int]]) -> None:
    assert largest_difference(server, live, prompts[:10]) < LOGIT_TOLERANCE
    with live.disable_adapter():
        assert largest_difference(server, live, prompts[:1]) > 0.1  # negative control: the adapter is in it


def test_gate_and_up_the_other_way_round_are_seen(f32: Path, live: PeftModel, tmp_path: Path, prompts: Any) -> None:
    """Negative control of the log-probabilities."""
    file = Path(shutil.copyfile(f32, tmp_path / "swapped.gguf"))
    reader = GGUFReader(file, "r+")
    up = next(tensor.data for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    up[:] = np.concatenate([up[len(up) // 2 :], up[: len(up) // 2]])
    reader.data.flush()
    with LlamaServer(file) as server:
        assert largest_difference(server, live, prompts[:1]) > 10 * LOGIT_TOLERANCE


CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "你好"}],
    [{"role": "system", "content": "你在扮演\n绵卷"}, {"role": "user", "content": " 南枝:「{{ x }}」"}],
    [
        {"role": "system", "content": 'You are "Bo".'},
        {"role": "assistant", "content": "Ahoy"},
        {"role": "user", "content": "Is it far?"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "In fog?"},
        {"role": "assistant", "content": "绵卷:「咩」"},
        {"role": "user", "content": "?"},
    ],
]


@pytest.mark.parametrize("train_turns", ["last", "all"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_chat_template_words_a_conversation_as_in_training(
    template: str, train_turns: Any, adapter: Path, tmp_path: Path
) -> None:
    recorded = with_prompt_format(adapter, tmp_path / "adapter", template, train_turns)
    system = 'S "quoted" \\ {{ no }}\nsecond line'
    merge(tmp_path / "out", str(recorded), format="gguf", quantization="q8_0", system=system)
    settings = EncodeSettings(None, template=template, train_turns=train_turns)
    with LlamaServer(exported(tmp_path / "out")) as server:
        for messages in CONVERSATIONS:
            # a server's replies begin with a blank
            sent = [m | {"content": f" {m['content']}"} if m["role"] == "assistant" else m for m in messages]
            text = server.ask("/apply-template", messages=sent)["prompt"]
            found = server.ask("/tokenize", content=text, add_special=True)["tokens"]
            if messages[0]["role"] != "system":
                messages = [{"role": "system", "content": system}, *messages]
            (row,) = encode_pairs([(messages, None)], TOKENIZER, settings)  # type: ignore[list-item]
            assert found == row.input_ids
    assert f'SYSTEM """{system}"""' in (tmp_path / "out/Modelfile").read_text(encoding="utf-8")


def test_the_folder_has_all_that_is_needed(folders: Callable[[str], Path]) -> None:
    folder = folders("f32")
    names = {"f32-f32.gguf", "Modelfile", "README.md", "kyon_pl.json", "prompt_format.yaml"}
    names |= {"tokenizer.model", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == names
    record = json.loads((folder / "kyon_pl.json").read_text(encoding="utf-8"))
    assert (record["format"], record["quantization"]) == ("gguf", "f32")
    assert {*record["files"]} == names - {"kyon_pl.json"}


def greedy(server: LlamaServer, prompt: list[int]) -> list[int]:
    request = {"prompt": prompt, "n_predict": NEW_TOKENS, "temperature": 0, "cache_prompt": False}
    answer = server.ask("/completion", return_tokens=True, **request)
    tokens: list[int] = answer["tokens"]
    return tokens


@pytest.fixture(scope="module")
def trained(demo_run: Path) -> Path:
    """The adapter of the whole demo."""
    return find_adapter(str(demo_run), "best")


@pytest.fixture(scope="module")
def serve_trained(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LlamaServer]:
    """The server of this adapter in a quantization; keys and values are stored as exactly."""
    place = tmp_path_factory.mktemp("trained")

    def serve(quantization: str) -> LlamaServer:
        if not (place / quantization).exists():
            merge(place / quantization, str(trained), format="gguf", quantization=quantization)  # type: ignore[arg-type]
        return LlamaServer(exported(place / quantization), cache="f32" if quantization == "f32" else "f16")

    return serve


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["f32", "f16", "q8_0"])
def test_greedy_replies_are_ours(
    quantization: str, trained: Path, serve_trained: Callable[[str], LlamaServer], prompts: list[list[int]]
) -> None:
    """After the whole demo, which leaves few close calls; which ones depends on the machine that trains.

    q8_0 changes log-probabilities by up to 0.16: 0.09 of it are rounded weights, and the rest are what llama.cpp rounds
    itself, the other side of each product and the cache. After 60 steps of training, 5 of the 50 replies differed, each
    from a place on where the likeliest two tokens were less than 0.16 apart (0.01 to 0.16).
    """
    tuned, eos = load_adapter(base(), trained, "demo").eval(), TOKENIZER.eos_token_id
    replies = generate_replies(tuned, prompts, max_new_tokens=NEW_TOKENS)
    assert len({*map(tuple, (reply.token_ids for reply in replies))}) > 30
    with serve_trained(quantization) as server:
        found = [[token for token in greedy(server, prompt) if token != eos] for prompt in prompts]
    calls = []
    for prompt, reply, theirs in zip(prompts, replies, found, strict=True):
        if theirs != reply.token_ids:
            pairs = zip_longest(reply.token_ids, theirs, fillvalue=eos)
            place, (one, other) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
            with torch.no_grad():
                logits = tuned(torch.tensor([prompt + reply.token_ids[:place]])).logits[0, -1].float()
            calls.append(float(logits[one] - logits[other]))
    assert len(calls) <= 5, calls
    assert all(call < CLOSE_CALL[quantization] for call in calls), calls


@pytest.mark.slow
def test_perplexity_in_q8_0(trained: Path, serve_trained: Callable[[str], LlamaServer]) -> None:
    """Of the targets of half of the validation rows, within 0.1 % of float32."""
    tuned, losses, found = load_adapter(base(), trained, "demo").eval(), [], []
    pairs = [(row["context"], row["target"]) for row in demo_rows()[::2]]
    with serve_trained("q8_0") as server:
        for row in encode_pairs(pairs, TOKENIZER, EncodeSettings(None)):
            with torch.no_grad():
                expected = tuned(torch.tensor([row.input_ids])).logits[0].float().log_softmax(-1)
            for place in range(row.seq_len, len(row.input_ids)):
                token = row.input_ids[place]
                losses.append(-float(expected[place - 1, token]))
                found.append(-float(log_probabilities(server, row.input_ids[:place], expected.shape[1])[token]))
    ours, theirs = (float(np.exp(np.mean(values))) for values in (losses, found))
    assert len(losses) > 800
    assert abs(theirs / ours - 1) < 1e-3, (ours, theirs)


@pytest.mark.slow
@pytest.mark.skipif(PUBLISHED is None, reason="KYON_CHATGLM2_DIR is unset: the folder of the real tokenizer.model")
def test_ids_of_the_real_tokenizer_are_the_published_ones(tmp_path: Path) -> None:
    """In a model of one layer with its vocabulary."""
    source = Path(str(PUBLISHED))
    config = tiny_config(num_layers=1, padded_vocab_size=65024)
    model = ChatGLM2ForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(source / name, tmp_path / "base" / name)
    tuned = attach_lora(model, LoraConfig(r=1, target_modules=["query_key_value"]), str(tmp_path / "base"))
    for name, parameter in tuned.named_parameters():
        parameter.data.fill_(0.1) if ".lora_" in name else None
    write_adapter(tuned, {n: p for n, p in tuned.state_dict().items() if ".lora_" in n}, tmp_path / "adapter")
    merge(tmp_path / "out", str(tmp_path / "adapter"), format="gguf", quantization="f16")
    tokenizer = ChatGLMTokenizer.from_pretrained(source)
    with LlamaServer(exported(tmp_path / "out")) as server:
        golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
        assert encoded_by(server, [one["text"] for one in golden]) == [one["ids_no_special"] for one in golden]
        assert different(server, tokenizer, texts_of_all_kinds()) == []


def test_a_file_that_is_not_what_was_meant_is_refused(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers, types and keys are compared after writing, and nothing is left."""
    quantize, add_value = gguf_file.quantize, gguf_file._add_value

    def without_bos(writer: Any, key: str, value: Any) -> None:
        if key != "tokenizer.ggml.add_bos_token":
            add_value(writer, key, value)

    for name, wrong, said in (
        ("quantize", lambda numbers, kind: quantize(numbers * np.float32(1.001), kind), "F32, which is more than"),
        ("_add_value", without_bos, "add_bos_token: nothing in the file instead of False"),
    ):
        monkeypatch.undo()
        monkeypatch.setattr(gguf_file, name, wrong)
        with pytest.raises(CheckpointError, match=said):
            merge(tmp_path / "out", str(adapter), format="gguf", quantization="f32")
        assert not any(tmp_path.iterdir())


def test_what_is_refused(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    with pytest.raises(SettingError, match="--dtype: --format gguf has no such option"):
        merge(output, str(adapter), format="gguf", dtype="float32")
    with pytest.raises(SettingError, match="--quantization: --format glm has no such option"):
        merge(output, str(adapter), format="glm", quantization="f16")
    with pytest.raises(SettingError, match="--system"):
        merge(output, str(adapter), format="gguf", system='"""')
    monkeypatch.setattr("kyon_pl.imports.find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"kyon-pl\[gguf\]"):
        merge(output, str(adapter), format="gguf")
    assert not any(tmp_path.iterdir())
