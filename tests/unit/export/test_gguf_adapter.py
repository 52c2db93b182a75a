"""An adapter alone in GGUF, on the base's GGUF in a real llama.cpp, computes what the merged model does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters_made import FOUR, KINDS, base, written_adapter
from gguf_exports import exported, log_probabilities
from llama_cpp import LlamaServer

from kyon_pl.chatglm2 import ChatGLMTokenizer
from kyon_pl.demo import ASSETS, BASE
from kyon_pl.errors import CheckpointError
from kyon_pl.export.convert_adapter import convert_adapter
from kyon_pl.export.merge import merge
from kyon_pl.lora.adapter import load_adapter

TOLERANCE = 1e-4
PATTERNS: dict[str, Any] = {
    "r": 4, "lora_alpha": 6, "target_modules": [*FOUR, "output_layer"], "rank_pattern": {"dense": 2, "output_layer": 3},
    "alpha_pattern": {"layers.1.mlp.dense_4h_to_h": 2.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def base_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    merge(folder, "none", format="gguf", quantization="f32", base="demo")
    return exported(folder)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    lines = (ASSETS / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:5]
    ids: list[list[int]] = ChatGLMTokenizer.from_pretrained(BASE)([json.loads(line)["context"] for line in lines])[
        "input_ids"
    ]
    return ids


@pytest.fixture(params=["fused", "rsLoRA", "patterns"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(KINDS, "patterns", PATTERNS)
    return written_adapter(request.param, tmp_path / "adapter")


@pytest.fixture
def server(adapter: Path, base_file: Path, tmp_path: Path) -> Iterator[LlamaServer]:
    convert_adapter(tmp_path / "bo", str(adapter), to="gguf")
    with LlamaServer(base_file, loras=[tmp_path / "bo/bo.gguf"]) as server:
        yield server


def largest_difference(server: LlamaServer, model: Any, prompts: list[list[int]], **request: object) -> float:
    differences = []
    for prompt in prompts:
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).numpy()
        differences.append(np.abs(log_probabilities(server, prompt, len(expected), **request) - expected).max())
    return float(max(differences))


def test_it_computes_what_the_merged_model_does(server: LlamaServer, adapter: Path, prompts: list[list[int]]) -> None:
    tuned = load_adapter(base(), adapter, "demo").eval()
    assert largest_difference(server, tuned, prompts, lora=[{"id": 0, "scale": 1}]) < TOLERANCE
    off: dict[str, object] = {"lora": [{"id": 0, "scale": 0}]}
    with tuned.disable_adapter():
        assert largest_difference(server, tuned, prompts, **off) < TOLERANCE
    assert largest_difference(server, tuned, prompts[:1], **off) > 100 * TOLERANCE  # negative control: it has an effect


def test_what_llama_cpp_does_not_compute_is_refused(tmp_path: Path) -> None:
    adapter = written_adapter("DoRA and head", tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"DoRA's magnitudes.*merge --format gguf"):
        convert_adapter(tmp_path / "bo", str(adapter), to="gguf")
    convert_adapter(tmp_path / "glm", str(written_adapter("rsLoRA", tmp_path / "plain")), to="glm")
    with pytest.raises(CheckpointError, match=r"model\.layers\.0.*it is not in ChatGLM2"):
        convert_adapter(tmp_path / "bo", str(tmp_path / "glm"), to="gguf", base="demo")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "plain", "glm"}
